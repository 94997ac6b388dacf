"""The averaged transformer of an SD3 run by diffusers' names, from files of tensors alone.

a whole network    generator.safetensors itself
an adapter         W + scale B A, for the teacher's W as the adapter was trained on them
                   or A and scale B on their own, which readers take for alpha = rank
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

PREFIX = "transformer."  # of SD3Velocity's weights
A, B = ".lora_A.weight", ".lora_B.weight"


def whole(generator: Path) -> dict[str, Tensor]:
    """Of a run without adapters; all float32."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(generator).items()}


def adapter(generator: Path, scale: float) -> dict[str, Tensor]:
    """As diffusers' pytorch_lora_weights.safetensors holds it: names begin with transformer."""
    return {name: scale * tensor if name.endswith(B) else tensor for name, tensor in load_file(generator).items()}


def merged(generator: Path, scale: float, base: Iterable[Path], base_dtype: torch.dtype) -> dict[str, Tensor]:
    """W + scale B A, float32.

    Args:
        generator: of a run with adapters.
        scale: alpha/rank.
        base: the teacher's files of weights.
        base_dtype: that W is rounded to first, as the run rounded it.
    """
    tensors = {name: tensor for file in base for name, tensor in load_file(file).items()}
    tensors = {name: tensor.to(base_dtype).float() for name, tensor in tensors.items()}
    parts = adapter(generator, scale)
    for name in (name.removesuffix(A) for name in parts if name.endswith(A)):
        tensors[f"{name.removeprefix(PREFIX)}.weight"] += parts[name + B] @ parts[name + A]
    return tensors


def in_dtype(tensors: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    return {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in tensors.items()}
