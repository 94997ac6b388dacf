"""What a device can do and what a cycle asks of it: peak arithmetic, floating-point operations, memory, and its clock.

FLOPs are those of the plain cycle (plain_loops.py), two for a multiplication and its addition, for one sample, with
nothing computed twice; so that MFU counts neither what checkpointing nor what a two-stage backward computes again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PEAKS = {  # dense bf16 FLOP/s of the tensor cores, from NVIDIA's data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a GPU that is known, in bf16; None elsewhere."""
    if device.type != "cuda" or not precision.startswith("bf16"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for gpu, flops in PEAKS.items() if gpu in name), None)


def flops_of(work: Callable[[], object], *nets: nn.Module) -> float:
    """Operations of work, whose networks compute nothing again meanwhile; attention counts as its two products."""
    with (
        all_stored(nets),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        work()
    return float(counter.get_total_flops())


@contextmanager
def all_stored(nets: tuple[nn.Module, ...]) -> Iterator[None]:
    """Without gradient checkpointing, as diffusers switches it."""
    on = [m for net in nets for m in net.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in on:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    yield
    for module in on:
        module.gradient_checkpointing = True  # type: ignore[assignment]


def finished(device: torch.device) -> None:
    """Returns when the device's work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device, peaks: list[float]) -> Iterator[None]:
    """Appends the largest memory that tensors held in here, GiB; nothing off CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        peaks.append(torch.cuda.max_memory_allocated(device) / 2**30)
