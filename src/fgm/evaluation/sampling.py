"""Samples as a pure function of (seed, index): which device or batch draws them does not matter."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fgm.flow.ode import OdeSampler
from fgm.flow.paths import ProbabilityPath
from fgm.networks.generator import FewStepGenerator
from fgm.utils.random import sample_noise
from fgm.utils.records import counted

Conditions = Callable[[Tensor], Tensor | None]  # of samples (n,): (n, ...), or None where there are none


@dataclass(frozen=True)
class Sampler:
    """A sampler (z, condition) -> x_0 and what is to be said of its samples.

    Attributes:
        name: as in pictures and on the console.
        nfe: network evaluations a sample.
        weights: ema, raw, teacher, or start for a generator of several steps before training.
        to_images: of what the sampler gives, where that is latents.
    """

    name: str
    sampler: nn.Module
    nfe: int
    weights: str
    to_images: Callable[[Tensor], Tensor] | None = None

    @property
    def renoisings(self) -> int:
        """Noises that the sampler takes besides z."""
        return getattr(self.sampler, "renoisings", 0)


def decoded(source: Sampler, data: Any) -> Sampler:
    """The same sampler, seen through data.to_images where its x_0 are latents."""
    return replace(source, to_images=getattr(data, "to_images", None))


def ode_sampler(net: nn.Module, path: ProbabilityPath, steps: int) -> Sampler:
    """The teacher's ODE by Euler's method."""
    sampler = OdeSampler(net, path, steps)
    return Sampler(f"teacher, {steps} steps", sampler, sampler.nfe, "teacher")


def generator_sampler(generator: FewStepGenerator, weights: str) -> Sampler:
    """A generator that is, or was, trained: ema or raw."""
    return Sampler(f"{counted(generator.nfe, 'step')}, {weights}", generator, generator.nfe, weights)


@torch.no_grad()
def draw(
    source: Sampler, seed: int, indices: Tensor, shape: tuple[int, ...], condition: Tensor | None, device: torch.device
) -> Tensor:
    """The samples of these indices in one batch, on the CPU; condition has a row for each."""
    weights = next(source.sampler.parameters(), torch.empty(0)).dtype
    dtype = torch.promote_types(weights, torch.float32)  # noise, times and samples are never of a half type
    roles = ["z", *(f"eps_{i}" for i in range(source.renoisings))]
    z, *eps = (sample_noise(seed, indices.tolist(), shape, role).to(device, dtype) for role in roles)
    condition = condition if condition is None else condition.to(device)
    x_0 = (source.sampler(z, condition, torch.stack(eps, 1)) if eps else source.sampler(z, condition)).float()
    return (source.to_images(x_0) if source.to_images else x_0).cpu()


def draw_samples(
    source: Sampler,
    seed: int,
    n: int,
    shape: tuple[int, ...],
    conditions: Conditions,
    device: torch.device,
    batch: int = 1000,
) -> tuple[Tensor, Tensor | None]:
    """Samples 0 to n - 1 and their conditions, on the CPU."""
    indices = torch.arange(n)
    samples = [draw(source, seed, i, shape, conditions(i), device) for i in indices.split(batch)]
    return torch.cat(samples), conditions(indices)
