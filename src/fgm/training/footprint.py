"""The memory of a distillation, from its config alone: two cycles of its training step, on tensors that hold nothing.

    weights       of all networks on the device, each storage once, and tables; the average, unless the host keeps it
    gradients     one network's at a time, but where DDP's buckets keep all of them
    optimizer     Adam's moments and whatever else an optimizer keeps; eight_bit's are counted by their sizes
    activations   all else: graphs, samples, weights cast for bf16, an optimizer's temporaries

The parts are those of the moment when their sum is largest, be that within a backward or within an optimizer's step.
So everything in the step counts as it is: guidance, two stages, checkpointing, adapters, a discriminator, further
steps, micro-batches. Not counted: the context, fragmentation, and the kernels' workspaces (RESERVED); prompts.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fgm.networks.guidance import unwrap_guidance
from fgm.networks.lora import base_model
from fgm.training.ledger import UNMARKED, AsOnGPU, Ledger
from fgm.training.method import Method

GIB = 2**30
GPUS = {  # GiB of memory
    "RTX 3060": 12,
    "T4, RTX 4080": 16,
    "RTX 4090, L4, A10": 24,
    "RTX 5090": 32,
    "A100 40GB": 40,
    "A6000, L40S": 48,
    "A100 80GB, H100": 80,
    "H200": 141,
    "B200": 180,
}
RESERVED = 1.1  # of the sum, for what is not counted, and 1 GiB of context


@dataclass(frozen=True)
class Footprint:
    """Bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def needed(self) -> float:
        """With what is not counted."""
        return self.total * RESERVED + GIB

    def fits(self) -> list[str]:
        """The GPUs that hold it."""
        return [gpu for gpu, size in GPUS.items() if self.needed <= size * GIB]


def of_distillation(make: Callable[[], Method], precision: str, copies: bool = False) -> Footprint:
    """
    Args:
        make: makes the module; called where nothing is computed or held.
        precision: of the networks' arithmetic, as Lightning names it.
        copies: DDP, whose buckets keep all networks' gradients.
    """
    with weightless(), Ledger("host") as ledger, AsOnGPU():
        module: Any = make()
        module.double() if precision == "64-true" else module
        trained = book(ledger, module, copies)
        half = precision == "bf16-mixed"
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else nullcontext():
            rehearse(ledger, module)
    found = {name: ledger.peak.get(name, 0) for name in ("weights", "gradients", "optimizer", UNMARKED)}
    return Footprint(**found | ({"gradients": trained} if copies else {}))


@contextmanager
def weightless() -> Iterator[None]:
    """Tensors hold nothing in here, and what would read their bytes does without: copies, conversions, generators."""
    state, nothing = torch.get_rng_state(), {"get_rng_state": lambda: None, "set_rng_state": lambda state: None}
    generator = patch.multiple(torch, **nothing), patch.object(torch.random, "fork_rng", lambda *_, **__: nullcontext())
    modules = patch.object(nn.Module, "_apply", converted), patch.object(Tensor, "__deepcopy__", copied)
    with generator[0], generator[1], modules[0], modules[1], FakeTensorMode(allow_non_fake_inputs=True):
        yield
    torch.set_rng_state(state)


def copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Tensor.__deepcopy__ without a look at the storage: torch's own would copy bytes that are not there."""
    return memo.setdefault(id(tensor), tensor.detach().clone().requires_grad_(tensor.requires_grad))


@torch.no_grad()
def converted(net: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply by new parameters, where torch's own would swap the contents of fake ones and cannot."""
    for child in net.children() if recurse else ():
        child._apply(fn)
    for name, p in net._parameters.items():
        if p is not None and (found := fn(p)) is not p:
            net._parameters[name] = nn.Parameter(found, p.requires_grad)
    net._buffers.update({name: fn(b) for name, b in net._buffers.items() if b is not None})
    return net


def book(ledger: Ledger, module: Any, copies: bool) -> int:
    """Marks weights and, as they come, gradients; bytes of all that is trained."""
    module.on_fit_start()
    nets = [
        module,
        *(net for net in (unwrap_guidance(module.teacher), module.start[0], base_model(module.generator.net))),
    ]
    weights = {id(t): t for net in nets for t in (*net.parameters(), *net.buffers())}
    averaged = {id(t) for t in (*module.ema.parameters(), *module.ema.buffers())}
    away = averaged if module.schedule.ema_device == "cpu" else set()
    text = {id(t) for net in nets for name, t in net.named_buffers() if ".text." in f".{name}"}
    gc.collect()
    away |= text | {id(module.cycle)}
    ledger.mark("weights", (t for key, t in weights.items() if key not in away))
    ledger.mark_others("host")
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.register_post_accumulate_grad_hook(lambda p: ledger.mark("host" if copies else "gradients", [p.grad]))
    return sum(p.numel() * p.element_size() for p in trained)


def rehearse(ledger: Ledger, module: Any) -> None:
    """Two cycles without a trainer; the first one makes the optimizers' states."""
    optimizers, _ = module.configure_optimizers()
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["foreach"] = None if group.get("fused") else True  # as on a GPU
    module._trainer = SimpleNamespace(strategy=None, world_size=1, global_rank=0, optimizers=optimizers)
    parts: list[Any] = [LightningOptimizer(optimizer) for optimizer in optimizers]
    for part in parts:
        part._strategy = SimpleNamespace(optimizer_step=lambda optimizer, closure: optimizer.step())
    module.manual_backward, module.optimizers = Tensor.backward, lambda: parts
    module.lr_schedulers = lambda: [SimpleNamespace(step=lambda: None) for _ in parts]
    module.report = lambda scalars: None
    for _ in range(2):
        ledger.begin()
        module.training_step(torch.zeros(()))
        states = (value for optimizer in optimizers for state in optimizer.state.values() for value in state.values())
        ledger.mark("optimizer", (value for value in states if isinstance(value, Tensor)))
