"""Who holds how much memory while code runs, real tensors or fake: every storage from its birth to its death.

Fake tensors (torch's FakeTensorMode) have shapes, types and lifetimes, and no numbers: code that runs on them takes
the memory that it would take, and none. Two things differ between the host, where they live, and a GPU:

    attention     there it is a fused kernel, which keeps its inputs, its output and a sum for each query
    norms         under bf16 autocast they are computed in float32 there, and keep their inputs so
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNMARKED = "activations"
NORMS = (functional.layer_norm, functional.group_norm, functional.rms_norm)


class Ledger(TorchDispatchMode):
    """Books of all storages that are made in here.

    A fake tensor has no value: where code asks for one, to decide or to count, it is told 1.

    Attributes:
        live: bytes by kind; what nobody has marked is UNMARKED.
        peak: live, when its sum was largest.
        uncounted: kinds that are not part of the sum.
    """

    def __init__(self, *uncounted: str) -> None:
        super().__init__()
        self.uncounted, self.kinds = set(uncounted), weakref.WeakKeyDictionary()
        self.live: dict[str, int] = {}
        self.peak: dict[str, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.enter(tensor.untyped_storage())
        return out

    def enter(self, storage: Any) -> None:
        if storage not in self.kinds:
            self.kinds[storage] = kind = [UNMARKED]
            weakref.finalize(storage, self.add, kind, -storage.nbytes())
            self.add(kind, storage.nbytes())

    def add(self, kind: list[str], count: int) -> None:
        self.live[kind[0]] = self.live.get(kind[0], 0) + count
        total = sum(n for name, n in self.live.items() if name not in self.uncounted)
        if total > self.most:
            self.most, self.peak = total, dict(self.live)

    def mark(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Their storages are of this kind from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.enter(storage)
            self.rebook(storage, name)

    def mark_others(self, name: str) -> None:
        """All storages that nobody has marked so far."""
        for storage in [storage for storage, kind in self.kinds.items() if kind[0] == UNMARKED]:
            self.rebook(storage, name)

    def rebook(self, storage: Any, name: str) -> None:
        kind, count = self.kinds[storage], storage.nbytes()
        self.live[kind[0]] -= count
        kind[0] = name
        self.live[name] = self.live.get(name, 0) + count

    def begin(self) -> None:
        """Forget the peak so far."""
        self.most, self.peak = 0, {}


class AsOnGPU(TorchFunctionMode):
    """Attention and norms keep what they keep there, also where blocks are computed again within a backward."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        half = torch.is_autocast_enabled("cpu")
        if func is functional.scaled_dot_product_attention:
            q, k, v = (x.to(torch.get_autocast_dtype("cpu")) if half else x for x in args[:3])
            return FusedAttention.apply(q, k, v)
        if func in NORMS and half:
            with torch.autocast("cpu", enabled=False):
                given: Any = [x.float() if isinstance(x, Tensor) else x for x in args]
                return func(*given, **floats(kwargs or {}))
        if func in (Tensor.backward, torch.autograd.grad):
            with self:  # torch leaves the mode before it calls func
                return (backward if func is Tensor.backward else gradients)(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def backward(
    tensor: Tensor, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = ()
) -> None:
    """Tensor.backward, which does not ask the mode again."""
    roots, given, into = as_tuple(tensor), as_tuple(gradient), as_tuple(inputs)
    keep = create_graph if retain_graph is None else retain_graph
    _engine_run_backward(roots, given or ones(roots), keep, create_graph, into, True, accumulate_grad=True)


def gradients(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    **_: Any,
) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad, likewise."""
    roots, given, into = as_tuple(outputs), as_tuple(grad_outputs), as_tuple(inputs)
    keep = create_graph if retain_graph is None else retain_graph
    return _engine_run_backward(
        roots, given or ones(roots), keep, create_graph, into, allow_unused, accumulate_grad=False
    )


def as_tuple(tensors: Any) -> tuple[Tensor, ...]:
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors or ())


def ones(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.ones_like(x) for x in tensors)


def floats(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.float() if isinstance(x, Tensor) else x for name, x in arguments.items()}


class FusedAttention(torch.autograd.Function):
    """Its memory alone: neither way computes anything. The way back sums the gradient of q in float32."""

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
