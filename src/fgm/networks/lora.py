"""Low-rank adapters on one frozen network that teacher, online network and generator share (LoRA, arXiv 2106.09685).

While an adapter is active, a linear layer y = W x of the base network returns

    y = W x + (alpha/rank) B A x,    A (rank, in) uniform in +-in^(-1/2),    B (out, rank) zero at first

so a fresh adapter changes nothing. The teacher is the base network without an adapter; the online network and the
generator are the base network under one adapter each. A forward hook adds the adapter's output, so that the base
network keeps its modules and names, and a LoRAModel's parameters and state dict are its adapter's alone. Unlike
peft's set_adapter, nothing here flips requires_grad, which makes autograd drop gradients.

An adapter is active for the duration of a call. Gradient checkpointing recomputes blocks during the backward pass,
therefore the backward pass must run inside VelocityModel.adapter_active() as well.

State dict names, <layer>.lora_A.weight and <layer>.lora_B.weight, are those of diffusers and peft, which assume
alpha = rank for a file without a configuration.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from fgm.networks import VelocityModel
from fgm.networks.mixed_precision import use_autocast
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # SD3's


@validated
@dataclass(frozen=True)
class LoRA:
    """Configuration of the adapters.

    Args:
        rank: rank of B A.
        alpha: the adapter's output is scaled by alpha/rank.
        targets: a linear layer gets an adapter if its name is one of these or ends with a dot and one of these.
        base: dtype of the base network's weights and arithmetic.
    """

    rank: PositiveInt = 64
    alpha: PositiveFloat = 64.0
    targets: Sequence[str] = ATTENTION
    base: Literal["float32", "bfloat16"] = "float32"

    def networks(self, net: VelocityModel, seed: int, names: Sequence[str]) -> list["LoRAModel"]:
        """Freeze net and return it under one fresh adapter per name.

        Raises:
            ValueError: targets match no linear layer of net.
        """
        linear = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
        layers = {n: layer for n, layer in linear.items() if any(f".{n}".endswith(f".{t}") for t in self.targets)}
        if not layers:
            last = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(f"adapters.targets match no linear layer of {type(net).__name__}; it has {last}")
        shared = SharedBase(net, layers, torch.bfloat16 if self.base == "bfloat16" else None)
        return [LoRAModel(shared, self.adapter(layers, keyed_generator(seed, "lora", name, index=0))) for name in names]

    def adapter(self, layers: dict[str, nn.Linear], noise: Generator) -> nn.Module:
        """Build a tree of modules with a LoRALinear in the place of each layer and nothing else."""
        root = nn.Module()
        for name, layer in layers.items():
            node, (*parents, last) = root, name.split(".")
            for parent in parents:
                if parent not in dict(node.named_children()):
                    node.add_module(parent, nn.Module())
                node = node.get_submodule(parent)
            node.add_module(last, LoRALinear(layer, self.rank, self.alpha / self.rank, noise))
        return root


class LoRALinear(nn.Module):
    """x (*, in) -> scale B A x (*, out), computed in the adapter's dtype: the layer's, or float32 for a half one."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float, noise: Generator) -> None:
        super().__init__()
        n_in, n_out, device = layer.in_features, layer.out_features, layer.weight.device
        like: dict[str, Any] = {"device": device, "dtype": torch.promote_types(layer.weight.dtype, torch.float32)}
        empty: Callable[..., Any] = partial(nn.utils.skip_init, nn.Linear, bias=False, **like)
        self.lora_A, self.lora_B = empty(n_in, rank), empty(rank, n_out)
        self.scale = scale
        with torch.no_grad():
            uniform = 2 * torch.rand(rank, n_in, generator=noise) - 1
            self.lora_A.weight.copy_(n_in**-0.5 * uniform.to(**like))
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))


class SharedBase:
    """The frozen base network and the adapter that is active in it. A deep copy of it is itself.

    Args:
        net: the base network, whose weights are converted in place.
        layers: its linear layers that have an adapter.
        dtype: of its weights and arithmetic, also after a move to another device; None leaves them as they are.
    """

    def __init__(self, net: VelocityModel, layers: dict[str, nn.Linear], dtype: torch.dtype | None = None) -> None:
        self.checksum = torch.stack([p.detach().double().sum() for p in net.parameters()]).sum().view(torch.int64)
        self.net, self.dtype = net.requires_grad_(False).to(dtype), dtype
        self.adapter: nn.Module | None = None
        if dtype:
            use_autocast(net, dtype)
        for name, layer in layers.items():
            layer.register_forward_hook(partial(self.add_adapter, name))

    def __deepcopy__(self, memo: Any) -> "SharedBase":
        return self

    def add_adapter(self, name: str, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.adapter is None:
            return None
        return output + self.adapter.get_submodule(name)(arguments[0]).to(output.dtype)

    @contextmanager
    def activate(self, adapter: nn.Module) -> Iterator[None]:
        before, self.adapter = self.adapter, adapter
        try:
            yield
        finally:
            self.adapter = before


class LoRAModel(VelocityModel):
    """The base network under one adapter. Its parameters and its state dict are the adapter's."""

    def __init__(self, shared: SharedBase, adapter: nn.Module) -> None:
        super().__init__()
        self.shared, self.adapter = shared, adapter
        self.shape, self.num_classes = shared.net.shape, shared.net.num_classes
        self.register_buffer("shared_checksum", shared.checksum, persistent=False)  # part of a sampler's identity

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        with self.adapter_active():
            return self.shared.net(x_t, t, condition)

    def unconditional(self, condition: Tensor) -> Tensor:
        return self.shared.net.unconditional(condition)

    def adapter_active(self) -> AbstractContextManager[None]:
        return self.shared.activate(self.adapter)

    def _apply(self, fn: Any, recurse: bool = True) -> "LoRAModel":
        self.shared.net._apply(fn, recurse).to(self.shared.dtype)  # moving an adapter moves the base network too
        return super()._apply(fn, recurse)


def trainable_module(net: nn.Module) -> nn.Module:
    """Return what training updates: the adapter of a LoRAModel, otherwise the network."""
    return net.adapter if isinstance(net, LoRAModel) else net


def base_model(net: VelocityModel) -> VelocityModel:
    """Return the network whose modules a call runs: the shared one of a LoRAModel, otherwise net."""
    return net.shared.net if isinstance(net, LoRAModel) else net
