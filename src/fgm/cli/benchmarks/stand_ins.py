"""What stands in where something is timed or counted: data, encodings, weights and moments of the true shapes."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fgm.data.text.encoders import CLIP_LENGTH
from fgm.networks import VelocityModel
from fgm.networks.guidance import guided
from fgm.utils.pretrained import architecture

BLOCK, SMALL = 256, 4096  # of bitsandbytes: elements that share a largest value, fewest that have moments of a byte


@dataclass(frozen=True)
class BlankData:
    """Images and conditions of a shape, and nothing in them."""

    shape: list[int]
    num_classes: int
    condition: list[int] | None
    std: float = 1.0

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        return torch.empty(n, *self.shape), self.conditions(n, generator)

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        if self.condition is None:
            return None
        return torch.zeros(n, *self.condition, dtype=torch.int64, device=generator.device)


class RandomText(nn.Module):
    """Prompts (n,) int64, all 0 -> words (n, 77 + max_length, width) and pooled (n, width).

    Args:
        model: whose widths they have, see architecture.
        max_length: T5's tokens.
    """

    def __init__(self, model: str, max_length: int) -> None:
        super().__init__()
        shape, noise = architecture(model), torch.Generator().manual_seed(0)
        words, pooled = (CLIP_LENGTH + max_length, shape["joint_attention_dim"]), (shape["pooled_projection_dim"],)
        for name, size in (("words", words), ("pooled", pooled)):
            self.register_buffer(name, torch.randn(1, *size, generator=noise).bfloat16(), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_buffer("words")[prompts], self.get_buffer("pooled")[prompts]


@torch.no_grad()
def random_weights(net: VelocityModel, guidance: float) -> VelocityModel:
    """A fresh network in place of a trained one, none of its weights zero."""
    for p in net.parameters():
        p.add_(0.02 * torch.randn_like(p))
    return guided(net, guidance)


class ByteMoments(Optimizer):
    """Holds what bitsandbytes' Adam holds, and steps nothing."""

    def step(self, closure: Any = None) -> None:
        del closure
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if not self.state[p]:
                small, blocks = p.numel() < SMALL, -(-p.numel() // BLOCK)
                state = {f"state{i}": torch.empty_like(p, dtype=p.dtype if small else torch.uint8) for i in (1, 2)}
                self.state[p] = state | ({} if small else {f"absmax{i}": torch.empty(blocks) for i in (1, 2)})


def byte_moments(net: nn.Module, lr: float, **settings: Any) -> Optimizer:
    """In place of an optimizer with kernel = eight_bit, where bitsandbytes need not be."""
    del settings
    return ByteMoments(list(net.parameters()), {"lr": lr})
