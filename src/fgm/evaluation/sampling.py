"""Samplers, and the conditions of their samples: sample i is a pure function of (seed, i, condition) on any device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fgm.data import Data
from fgm.evaluation import PromptMetric
from fgm.flow.paths import ProbabilityPath
from fgm.flow.solvers import OdeSampler
from fgm.utils.random import keyed_generator, sample_noise
from fgm.utils.records import counted

OfIndices = Callable[[Tensor], Tensor | None]  # from the indices of samples (n,) to (n, ...), or None


@dataclass(frozen=True)
class Sampler:
    """A model (z, condition) -> x_0 and how its samples are reported.

    Attributes:
        name: in pictures and on the console.
        model: the module; a few-step model also takes noises (n, renoisings, *shape).
        nfe: network evaluations per sample.
        weights: ema, ema_<half-life>, raw, teacher, or start for a generator of several steps before training.
        to_images: decodes x_0 if they are latents.
    """

    name: str
    model: nn.Module
    nfe: int
    weights: str
    to_images: Callable[[Tensor], Tensor] | None = None

    @property
    def renoisings(self) -> int:
        """Number of noises that the model takes in addition to z."""
        return getattr(self.model, "renoisings", 0)

    def decoded(self, data: Any) -> "Sampler":
        """Return the same sampler with the decoder of data."""
        return replace(self, to_images=data.to_images)


def ode_sampler(net: nn.Module, path: ProbabilityPath, steps: int, weights: str = "teacher") -> Sampler:
    """Return the teacher's ODE, solved by Euler's method."""
    model = OdeSampler(net, path, steps)
    return Sampler(f"{weights}, {steps} steps", model, model.nfe, weights)


def generator_sampler(generator: Any, weights: str) -> Sampler:
    """Return the samples of a generator with its own number of network calls, generator.nfe."""
    return Sampler(f"{counted(generator.nfe, 'step')}, {weights}", generator, generator.nfe, weights)


def start_sampler(generator: Any, regressed: bool) -> Sampler:
    """Return the samples of a generator before its distillation, regressed onto the teacher's ODE or not."""
    if regressed:
        return Sampler("start: before training", generator, generator.nfe, "start")
    weights = "teacher" if generator.nfe == 1 else "start"
    return Sampler("start: teacher at t*", generator, generator.nfe, weights)


@torch.no_grad()
def draw(
    sampler: Sampler, seed: int, indices: Tensor, shape: tuple[int, ...], condition: Tensor | None, device: torch.device
) -> Tensor:
    """Draw the samples of these indices in one batch, on the CPU; condition has a row for each."""
    weights = next(sampler.model.parameters(), torch.empty(0)).dtype
    dtype = torch.promote_types(weights, torch.float32)  # noise, times and samples are never in half precision
    roles = ["z", *(f"eps_{i}" for i in range(sampler.renoisings))]
    z, *eps = (sample_noise(seed, indices.tolist(), shape, role).to(device, dtype) for role in roles)
    condition = condition if condition is None else condition.to(device)
    x_0 = (sampler.model(z, condition, torch.stack(eps, 1)) if eps else sampler.model(z, condition)).float()
    return (sampler.to_images(x_0) if sampler.to_images else x_0).cpu()


def draw_samples(
    sampler: Sampler,
    seed: int,
    n: int,
    shape: tuple[int, ...],
    conditions: OfIndices,
    device: torch.device,
    batch: int = 1000,
) -> tuple[Tensor, Tensor | None]:
    """Return samples 0 to n - 1 and their conditions, on the CPU."""
    indices = torch.arange(n)
    samples = [draw(sampler, seed, i, shape, conditions(i), device) for i in indices.split(batch)]
    return torch.cat(samples), conditions(indices)


@dataclass(frozen=True)
class Conditioning:
    """What sample i is conditioned on, and how a metric suite knows it.

    Attributes:
        labels: classes or prompt ids, (n,) int64; or None.
        conditions: of the sampler, (n, ...); or None.
    """

    labels: OfIndices
    conditions: OfIndices


def conditioning(data: Data, suite: Any, seed: int) -> Conditioning:
    """Return the prompts of a PromptMetric, else balanced classes, else random conditions of data, or none."""
    if isinstance(suite, PromptMetric):
        return Conditioning(suite.prompt_ids, lambda indices: suite.conditions(suite.prompt_ids(indices)))
    return balanced(data.num_classes) if data.num_classes else random_conditions(data, seed)


def balanced(num_classes: int) -> Conditioning:
    """Return class i modulo num_classes for sample i; unconditional if there are no classes."""

    def classes(indices: Tensor) -> Tensor | None:
        return indices % num_classes if num_classes else None

    return Conditioning(classes, classes)


def random_conditions(data: Data, seed: int) -> Conditioning:
    def conditions(indices: Tensor) -> Tensor | None:
        rows = [data.conditions(1, keyed_generator(seed, "condition", index=i)) for i in indices.tolist()]
        found = [row for row in rows if row is not None]
        return torch.cat(found) if found else None

    return Conditioning(lambda indices: None, conditions)
