"""Which arithmetic a step runs in, and attention for steps on a CPU.

precision = auto is bf16-mixed where the device multiplies bfloat16 matrices by instructions of its own, AVX512-BF16 or AMX
on a CPU; elsewhere 32-true, which is then two to four times as fast.

Lightning calls a plugin's train_step_context around every training_step. On a CPU, attention over at most LONGEST tokens is
then three plain operations: the backward of torch's fused kernel takes 1.6 ms for the digits' transformer and the plain one
0.7 ms, with another rounding in the last place. Its own plain form, SDPBackend.MATH, spends a tenth of the MM-DiT's step on
rows that a mask would have emptied.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

LONGEST = 256  # tokens


@contextmanager
def attention_as_products() -> Generator[None, None, None]:
    """Put plain_attention in place of torch's own, for networks that call it as functional.scaled_dot_product_attention.

    A TorchFunctionMode would be off in a backward, where gradient checkpointing computes blocks again.
    """
    functional.scaled_dot_product_attention = plain_attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = scaled_dot_product_attention


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    scale: Any = None,
    **more: Any,
) -> Tensor:
    """Return softmax(scale q k^T) v, (..., n, d); torch's own attention if it is masked, or over many tokens."""
    if attn_mask is not None or args or any(more.values()) or key.shape[-2] > LONGEST:
        return scaled_dot_product_attention(query, key, value, attn_mask, *args, scale=scale, **more)
    scaled = query * (scale or query.shape[-1] ** -0.5)
    return (scaled @ key.transpose(-1, -2)).softmax(-1) @ value


class CpuPrecision(Precision):
    """32-true on a CPU."""

    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        with attention_as_products():
            yield


class CpuMixedPrecision(MixedPrecision):
    """bf16-mixed on a CPU."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        with super().train_step_context(), attention_as_products():
            yield


def precision_plugin(precision: str, device: str) -> Precision | None:
    """Return Lightning's plugin for a precision on a kind of device, or None where Lightning's own does."""
    if device == "cpu":
        return {"32-true": CpuPrecision, "bf16-mixed": CpuMixedPrecision}.get(precision, lambda: None)()
    return MixedPrecision("bf16-mixed", device) if precision == "bf16-mixed" else None


def kind_of_device(accelerator: str) -> str:
    """Return cpu or cuda, which Lightning's `accelerator` means here."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    return "cpu" if on_cpu else "cuda"


def fastest_precision(device: str) -> str:
    """Return what precision = auto means on a kind of device."""
    if device == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "32-true"
