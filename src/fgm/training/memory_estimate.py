"""The memory of a distillation on a GPU, counted from its config: two cycles on tensors without content.

    weights       of all networks on the device, each storage once, with buffers; the average, unless the host holds it
    gradients     one network's at a time, except with DDP, whose buckets hold all of them
    optimizer     Adam's moments and whatever else an optimizer stores; eight_bit's are counted by their sizes
    activations   everything else: graphs, samples, weights cast to bf16, an optimizer's temporaries

The parts are those of the moment when their sum peaks, within a backward or within an optimizer's step, so that every
option of the step counts as it is. Not counted: CUDA's context, fragmentation, kernels' workspaces (RESERVED), prompts.

Fake tensors (torch's FakeTensorMode) have shapes, types and lifetimes. torch.distributed._tools.mem_tracker.MemTracker
cannot count this step: it fails on networks whose weights are frozen for one update, and on a network that is called
several times (measured with torch 2.14.1); so a dispatch mode counts storages here.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fgm.networks.guidance import unwrap_guidance
from fgm.networks.lora import base_model
from fgm.training.module import TrainingModule

GIB = 2**30
GPUS = {  # GiB of memory
    "RTX 3060": 12, "T4, RTX 4080": 16, "RTX 4090, L4, A10": 24, "RTX 5090": 32, "A100 40GB": 40, "A6000, L40S": 48,
    "A100 80GB, H100": 80, "H200": 141, "B200": 180,
}  # fmt: skip
RESERVED = 1.1  # times the sum, and 1 GiB of context, for what is not counted
ACTIVATIONS, HOST = "activations", "host"
NORMS = (functional.layer_norm, functional.group_norm, functional.rms_norm)


@dataclass(frozen=True)
class MemoryEstimate:
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
        """Return the bytes of a GPU that surely suffice."""
        return self.total * RESERVED + GIB

    def fits(self) -> list[str]:
        return [gpu for gpu, size in GPUS.items() if self.needed <= size * GIB]


def estimate_memory(make: Callable[[], TrainingModule], precision: str, ddp: bool = False) -> MemoryEstimate:
    """Run two cycles on fake tensors and return their peak.

    Args:
        make: makes the module; called under FakeTensorMode.
        precision: of the networks' arithmetic, as Lightning names it.
        ddp: whether buckets hold all networks' gradients.
    """
    with fake_tensors(), MemoryTracker() as tracker, GPUKernels():
        module: Any = make()
        module.double() if precision == "64-true" else module
        trained = register(tracker, module, ddp)
        bf16 = precision == "bf16-mixed"
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if bf16 else nullcontext():
            run_two_cycles(tracker, module)
    parts = {name: tracker.peak.get(name, 0) for name in ("weights", "gradients", "optimizer", ACTIVATIONS)}
    return MemoryEstimate(**parts | ({"gradients": trained} if ddp else {}))


def register(tracker: "MemoryTracker", module: Any, ddp: bool) -> int:
    """Classify the module's storages, and gradients as they appear; return the bytes of all trained weights."""
    module.on_fit_start()
    nets = [module, unwrap_guidance(module.teacher), module.frozen[1], base_model(module.generator.net)]
    weights = {id(t): t for net in nets for t in (*net.parameters(), *net.buffers())}
    averaged = {id(t) for ema in module.averages.values() for t in (*ema.parameters(), *ema.buffers())}
    on_host = averaged if module.config.ema_device == "cpu" else set()
    text = {id(t) for net in nets for name, t in net.named_buffers() if ".text." in f".{name}"}
    gc.collect()
    on_host |= text | {id(module.step)}
    tracker.classify("weights", (t for key, t in weights.items() if key not in on_host))
    tracker.classify_others(HOST)
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.register_post_accumulate_grad_hook(lambda p: tracker.classify(HOST if ddp else "gradients", [p.grad]))
    return sum(p.numel() * p.element_size() for p in trained)


def run_two_cycles(tracker: "MemoryTracker", module: Any) -> None:
    """Run the training step twice without a trainer; the first cycle creates the optimizers' states."""
    optimizers = [chosen["optimizer"] for chosen in module.configure_optimizers()]
    for defaults, group in ((each.defaults, group) for each in optimizers for group in each.param_groups):
        group["fused"] = defaults.get("fused")  # as on a GPU
        group["foreach"] = None if group["fused"] else True
    module._trainer = SimpleNamespace(strategy=None, world_size=1, global_rank=0, optimizers=optimizers)
    wrapped: list[Any] = [LightningOptimizer(optimizer) for optimizer in optimizers]
    for optimizer in wrapped:
        optimizer._strategy = SimpleNamespace(optimizer_step=lambda optimizer, closure: optimizer.step())
    module.manual_backward, module.optimizers = Tensor.backward, lambda: wrapped
    module.lr_schedulers = lambda: [SimpleNamespace(step=lambda: None) for _ in wrapped]
    module.finish_step = lambda scalars: None
    for _ in range(2):
        tracker.reset_peak()
        module.training_step(torch.zeros(()))
        states = (value for optimizer in optimizers for state in optimizer.state.values() for value in state.values())
        tracker.classify("optimizer", (value for value in states if isinstance(value, Tensor)))


class MemoryTracker(TorchDispatchMode):
    """Counts every storage that is made within the mode, real or fake, from its birth to its death.

    A fake tensor has no value: code that reads one, to decide or to count, reads 1.

    Attributes:
        live: bytes by kind; unclassified storages are ACTIVATIONS.
        peak: live at the moment when its sum, without HOST, was largest.
        peak_total: that sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Any = weakref.WeakKeyDictionary()
        self.live: dict[str, int] = {}
        self.reset_peak()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.track(tensor.untyped_storage())
        return out

    def track(self, storage: Any) -> None:
        if storage not in self.kinds:
            self.kinds[storage] = kind = [ACTIVATIONS]
            weakref.finalize(storage, self.add, kind, -storage.nbytes())
            self.add(kind, storage.nbytes())

    def add(self, kind: list[str], count: int) -> None:
        self.live[kind[0]] = self.live.get(kind[0], 0) + count
        total = sum(n for name, n in self.live.items() if name != HOST)
        if total > self.peak_total:
            self.peak_total, self.peak = total, dict(self.live)

    def classify(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Count the tensors' storages as `name` from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.track(storage)
            self.move(storage, name)

    def classify_others(self, name: str) -> None:
        """Count all storages that are unclassified so far as `name`."""
        for storage in [storage for storage, kind in self.kinds.items() if kind[0] == ACTIVATIONS]:
            self.move(storage, name)

    def move(self, storage: Any, name: str) -> None:
        kind, count = self.kinds[storage], storage.nbytes()
        self.live[kind[0]] -= count
        kind[0] = name
        self.live[name] = self.live.get(name, 0) + count

    def reset_peak(self) -> None:
        self.peak_total, self.peak = 0, dict[str, int]()


class GPUKernels(TorchFunctionMode):
    """Makes attention and norms save for backward what they save on a GPU, also within recomputed blocks.

    There attention is a fused kernel, which saves its inputs, its output and a sum for each query; norms run in float32
    under bf16 autocast and save such inputs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs, autocast = kwargs or {}, torch.is_autocast_enabled("cpu")
        if func is functional.scaled_dot_product_attention:
            q, k, v = (x.to(torch.get_autocast_dtype("cpu")) if autocast else x for x in args[:3])
            return FusedAttention.apply(q, k, v)
        if func in NORMS and autocast:
            with torch.autocast("cpu", enabled=False):
                inputs: list[Any] = [x.float() if isinstance(x, Tensor) else x for x in args]
                named: dict[str, Any] = {k: x.float() if isinstance(x, Tensor) else x for k, x in kwargs.items()}
                return func(*inputs, **named)
        if func in (Tensor.backward, torch.autograd.grad):
            with self:  # torch leaves the mode before it calls func
                return run_backward(func, *args, **kwargs)
        return func(*args, **kwargs)


def run_backward(func: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Do what Tensor.backward or torch.autograd.grad does, without dispatching to the mode again."""
    accumulate = func is Tensor.backward
    order = ("grad_outputs", "retain_graph", "create_graph", "inputs")
    given = dict(zip(order if accumulate else ("inputs", *order[:3]), args, strict=False)) | kwargs
    weights = given.get("gradient" if "gradient" in given else "grad_outputs")
    roots, weights, inputs = (
        (x,) if isinstance(x, Tensor) else tuple(x or ()) for x in (outputs, weights, given.get("inputs"))
    )
    create, retain = given.get("create_graph", False), given.get("retain_graph")
    return _engine_run_backward(
        roots, weights or tuple(torch.ones_like(x) for x in roots), create if retain is None else retain, create,
        inputs, accumulate or given.get("allow_unused", False), accumulate_grad=accumulate,
    )  # fmt: skip


class FusedAttention(torch.autograd.Function):
    """Allocates what a fused kernel does, and computes nothing; its backward sums the gradient of q in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        torch.empty_like(q, dtype=torch.float32)
        return tuple(torch.empty_like(x) for x in (q, k, v))


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make fake tensors, and replace what would read their bytes: copies, conversions, generators' states."""
    state, nothing = torch.get_rng_state(), {"get_rng_state": lambda: None, "set_rng_state": lambda state: None}
    generator = patch.multiple(torch, **nothing), patch.object(torch.random, "fork_rng", lambda *_, **__: nullcontext())
    modules = patch.object(nn.Module, "_apply", converted), patch.object(Tensor, "__deepcopy__", copied)
    with generator[0], generator[1], modules[0], modules[1], FakeTensorMode(allow_non_fake_inputs=True):
        yield
    torch.set_rng_state(state)


def copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Replace Tensor.__deepcopy__, which would copy the bytes of the storage."""
    return memo.setdefault(id(tensor), tensor.detach().clone().requires_grad_(tensor.requires_grad))


@torch.no_grad()
def converted(net: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replace nn.Module._apply, which would swap the contents of fake parameters, by one that makes new parameters."""
    for child in net.children() if recurse else ():
        child._apply(fn)
    for name, p in net._parameters.items():
        if p is not None and (new := fn(p)) is not p:
            net._parameters[name] = nn.Parameter(new, p.requires_grad)
    net._buffers.update({name: fn(b) for name, b in net._buffers.items() if b is not None})
    return net
