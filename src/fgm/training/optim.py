"""Optimizers as functions of a network, and the schedule of the learning rate.

Adam and AdamW come in three kernels, of the same formula and under the same checkpoints:

    auto        on a CPU the fused one; elsewhere torch's choice, on a GPU all tensors at once, with one more copy of the
                weights in memory meanwhile. A run that began with another one keeps it when it resumes
    fused       one pass over weights, gradients and moments; no such copy, and the fastest
    eight_bit   moments of eight bits in blocks of 256, each with its largest value (arXiv 2110.02861), by bitsandbytes:
                2 bytes a weight in place of 8. Tensors under 4096 elements keep theirs in float32. bitsandbytes holds
                them as plain tensors, which a checkpoint that executes nothing can carry; torchao as a class of its own
"""

import math
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fgm.utils.errors import require_installed
from fgm.utils.validation import validated

Positive = PositiveFloat
Kernel = Literal["auto", "fused", "eight_bit"]
MakeOptimizer = Callable[[nn.Module], Optimizer]
Schedule = Literal["constant", "linear", "cosine"]


@validated
def adam(
    net: nn.Module,
    lr: Positive,
    beta_1: float = 0.0,
    beta_2: float = 0.999,
    eps: Positive = 1e-8,
    kernel: Kernel = "auto",
) -> Optimizer:
    """Adam without momentum, as SiD and RealUID train both networks of a min-max game."""
    return build_optimizer(kernel, (Adam, "Adam8bit"), net, lr=lr, betas=(beta_1, beta_2), eps=eps)


@validated
def adamw(net: nn.Module, lr: Positive, weight_decay: float = 0.0, kernel: Kernel = "auto") -> Optimizer:
    return build_optimizer(kernel, (AdamW, "AdamW8bit"), net, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)


def build_optimizer(
    kernel: Kernel, kinds: tuple[Callable[..., Optimizer], str], net: nn.Module, **settings: Any
) -> Optimizer:
    """
    Args:
        kernel: see above.
        kinds: torch's class, and the name of bitsandbytes' one.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    parameters: Any = list(net.parameters())
    if kernel != "eight_bit":
        optimizer = kinds[0](parameters, **settings, fused=kernel == "fused" or None)
        for group in optimizer.param_groups:
            group["fused"] = group["fused"] or all(p.device.type == "cpu" for p in parameters) or None
        return optimizer
    require_installed("bitsandbytes", "optimizer.kernel = eight_bit")
    return getattr(import_module("bitsandbytes").optim, kinds[1])(parameters, **settings)


@validated
def muon(net: nn.Module, lr: Positive, weight_decay: float = 0.0, blocks: str = "blocks") -> Optimizer:
    """Muon on the matrices inside the submodule `blocks`, AdamW on everything else, at one rate (arXiv 2502.16982).

    For adapters, which are matrices alone, blocks is adapter.
    """
    matrices = [p for p in net.get_submodule(blocks).parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in net.parameters() if id(p) not in chosen]
    rest = [AdamW(others, lr, (0.9, 0.99), weight_decay=weight_decay)] if others else []
    return CombinedOptimizer(Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw"), *rest)


class CombinedOptimizer(Optimizer):
    """Several optimizers that step as one; their parameter groups and states stay their own."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


DECAYS: dict[str, Callable[[float], float]] = {  # from the share of the decay that remains, 1 to 0, to a factor
    "linear": lambda remaining: remaining,
    "cosine": lambda remaining: (1 - math.cos(math.pi * remaining)) / 2,
    "constant": lambda remaining: 1.0,
}


def learning_rate(
    optimizer: Optimizer, updates: int, warmup: int, decay: float, schedule: Schedule = "linear"
) -> LambdaLR:
    """Return linear growth over `warmup` updates, a constant rate, then one of DECAYS over the last share `decay`."""

    def factor(update: int) -> float:
        remaining = (updates - update) / (decay * updates) if decay else 1.0
        return min(1.0, (update + 1) / (warmup + 1), DECAYS[schedule](min(1.0, max(remaining, 0.0))))

    return LambdaLR(optimizer, factor)


def with_lr_ratio(make: MakeOptimizer, ratio: float) -> MakeOptimizer:
    """Return a maker of the same optimizer at `ratio` times its learning rate."""

    def scaled(net: nn.Module) -> Optimizer:
        optimizer = make(net)
        for group in optimizer.param_groups:
            group["lr"] *= ratio
        return optimizer

    return scaled


def constrain(net: nn.Module) -> None:
    """Call constrain_() of every layer that has it, such as those of EDM2, whose weights have normalized rows."""
    for module in net.modules():
        if hasattr(module, "constrain_"):
            module.constrain_()  # type: ignore[operator]


def keep_constrained(optimizer: Optimizer, net: nn.Module) -> Optimizer:
    """Make every step of net's optimizer end with constrain(net)."""
    if any(hasattr(module, "constrain_") for module in net.modules()):
        optimizer.register_step_post_hook(lambda *_: constrain(net))
    return optimizer


def parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])
