"""bf16-mixed on a CPU: attention by plain products of matrices.

The backward pass of torch's fused attention has no bfloat16 kernel of its own there: with the small MM-DiT's 76 tokens
it takes half of a step's time, which the plain products bring down to that of any other layer (`make bench` times it).
"""

from collections.abc import Generator
from contextlib import contextmanager

from lightning.pytorch.plugins.precision import MixedPrecision
from torch.nn.attention import SDPBackend, sdpa_kernel


class CpuMixedPrecision(MixedPrecision):
    """Lightning's, and attention's plain form within a training step; measurements compute in float32 as ever."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        with super().train_step_context(), sdpa_kernel(SDPBackend.MATH):
            yield


def bf16_mixed(device: str) -> MixedPrecision:
    """Of a training step on a kind of device."""
    return CpuMixedPrecision() if device == "cpu" else MixedPrecision("bf16-mixed", device)
