"""A generator's or a teacher's samples: a pure function of (seed, index, condition).

Images are quantised to uint8. A sampler is always called on the same batches, whose borders are multiples of `batch`:
arithmetic may differ in its last bits between batch sizes, and does not between ranges that start at such a border.
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from fgm.data.pixels import Mode, quantise
from fgm.evaluation.conditioning import Conditioning
from fgm.evaluation.sampling import Sampler, draw
from fgm.evaluation.sources import Samples
from fgm.utils.errors import UserError


@dataclass(frozen=True)
class SamplerSource:
    """n samples of a sampler.

    Args:
        source: the sampler.
        seed: of its noise.
        shape: of one sample.
        conditioning: what each sample is drawn under.
        batch: samples at once.
        identity: what else than its weights defines the sampler, such as its config's digest; with a training's cycle
            in it the weights are left out, whose gigabytes take seconds to hash.
        mode: how images become bytes.
    """

    source: Sampler
    seed: int
    n: int
    shape: tuple[int, ...]
    conditioning: Conditioning
    device: torch.device
    batch: int = 1000
    identity: dict[str, Any] = field(default_factory=dict)
    mode: Mode = "round"

    @property
    def nfe(self) -> int:
        return self.source.nfe

    @property
    def weights(self) -> str:
        return self.source.weights

    def take(self, indices: range) -> Samples:
        whole = torch.arange(indices.start, indices.stop)
        x = torch.cat([self.drawn(part) for part in whole.split(self.batch)])
        require_finite(x, indices.start, self.source.name)
        return Samples(quantise(x, self.mode) if len(self.shape) == 3 else x, self.conditioning.labels(whole))

    def drawn(self, indices: Tensor) -> Tensor:
        condition = self.conditioning.conditions(indices)
        return draw(self.source, self.seed, indices, self.shape, condition, self.device)

    def describe(self) -> dict[str, Any]:
        drawn = {"name": self.source.name, "nfe": self.nfe, "weights": self.weights, "seed": self.seed}
        where = {"batch": self.batch, "device": self.device.type, "shape": list(self.shape), "quantise": self.mode}
        weights = {} if "cycle" in self.identity else {"weights_sha256": self.weights_sha256}
        return {"kind": "sampler", **drawn, **where, **weights, **self.identity}

    @cached_property
    def weights_sha256(self) -> str:
        return state_sha256(self.source.sampler)


def state_sha256(module: nn.Module) -> str:
    """Of all parameters and buffers, saved or not, by their names and bytes.

    By a copy's bytes: memory that numpy has been shown cannot be given back, as networks in shards want to.
    """
    content = sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().to("cpu", copy=True).contiguous().view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def require_finite(x: Tensor, start: int, name: str) -> None:
    """Refuse NaN and infinity, which quantising would turn into pixels."""
    broken = (~x.flatten(1).isfinite().all(1)).nonzero().flatten()
    if len(broken):
        raise UserError(
            f"{name}: {len(broken)} of the samples {start} to {start + len(x) - 1} are not finite, number "
            f"{start + int(broken[0])} first; the weights have diverged: train again, with a lower learning rate"
        )
