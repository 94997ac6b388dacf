"""Low-rank adapters on one frozen network that teacher, online network and generator share (LoRA, arXiv 2106.09685).

A linear layer y = W x of the network gives W x + (alpha/rank) B A x while an adapter is active, W x otherwise; A is
(rank, in) and uniform in +-in^(-1/2), B is (out, rank) and starts at zero, so that a fresh adapter changes nothing.

    teacher     the network, no adapter active
    online      the network under one adapter         generator     the network under another

The layers ask for the active adapter by a forward hook: the network's own modules and names stay as they are, an
adapter is a module of its own tensors alone, and what an optimizer, an average or a checkpoint holds of an Adapted
network is its adapter. Nothing ever flips requires_grad; peft's set_adapter does, and autograd then drops gradients.

A call activates its adapter for as long as it runs. Under gradient checkpointing blocks are computed a second time,
in the backward: VelocityModel.active() must hold there too, which training/two_stage.py and the turns see to.

Names in a state dict, <layer>.lora_A.weight and <layer>.lora_B.weight, are those that diffusers and peft write; they
read a file without a configuration as alpha = rank.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from fgm.networks import VelocityModel
from fgm.networks.half import compute_in


class Matrix(nn.Module):
    """A weight by the name under which a linear layer would have it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class LowRank(nn.Module):
    """x (*, in) -> scale B A x (*, out), computed in the adapter's dtype.

    Args:
        layer: the linear layer that it is for; its device is the adapter's, and its dtype if that is no half one.
        rank: of B A.
        scale: alpha/rank.
        noise: where A is drawn from.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, noise: Generator) -> None:
        super().__init__()
        like = {"device": layer.weight.device, "dtype": torch.promote_types(layer.weight.dtype, torch.float32)}
        uniform = 2 * torch.rand(rank, layer.in_features, generator=noise) - 1
        self.lora_A = Matrix(layer.in_features**-0.5 * uniform.to(**like))
        self.lora_B = Matrix(torch.zeros(layer.out_features, rank, **like))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.lora_A.weight, self.lora_B.weight
        return self.scale * linear(linear(x.to(down.dtype), down), up)


class SharedNetwork:
    """A frozen network, and the adapter that is active in it. Copying it gives itself.

    Args:
        net: the network, whose weights are converted in place.
        layers: those with an adapter.
        dtype: of its weights and its arithmetic, wherever it is moved; None leaves them as they are.
    """

    def __init__(self, net: VelocityModel, layers: dict[str, nn.Linear], dtype: torch.dtype | None = None) -> None:
        self.checksum = torch.stack([p.detach().double().sum() for p in net.parameters()]).sum().view(torch.int64)
        self.net, self.dtype = net.requires_grad_(False).to(dtype), dtype
        self.adapter: nn.Module | None = None
        if dtype:
            compute_in(net, dtype)
        for name, layer in layers.items():
            layer.register_forward_hook(partial(self.adapted, name))

    def __deepcopy__(self, memo: Any) -> "SharedNetwork":
        return self

    def adapted(self, name: str, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.adapter is None:
            return None
        return output + self.adapter.get_submodule(name)(arguments[0]).to(output.dtype)

    @contextmanager
    def using(self, adapter: nn.Module) -> Iterator[None]:
        before, self.adapter = self.adapter, adapter
        try:
            yield
        finally:
            self.adapter = before


class Adapted(VelocityModel):
    """The shared network under an adapter. Its parameters and its state dict are the adapter's."""

    def __init__(self, shared: SharedNetwork, adapter: nn.Module) -> None:
        super().__init__()
        self.shared, self.adapter = shared, adapter
        self.shape, self.num_classes = shared.net.shape, shared.net.num_classes
        self.register_buffer("shared_checksum", shared.checksum, persistent=False)  # what identifies a sampler sees it

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        with self.active():
            return self.shared.net(x_t, t, condition)

    def null(self, condition: Tensor) -> Tensor:
        return self.shared.net.null(condition)

    def active(self) -> AbstractContextManager[None]:
        return self.shared.using(self.adapter)

    def _apply(self, fn: Any, recurse: bool = True) -> "Adapted":
        self.shared.net._apply(fn, recurse).to(self.shared.dtype)  # moving an adapter takes the network along
        return super()._apply(fn, recurse)


def trained_part(net: nn.Module) -> nn.Module:
    """What training moves: an adapter, or the whole network."""
    return net.adapter if isinstance(net, Adapted) else net


def own(net: VelocityModel) -> VelocityModel:
    """The network whose modules a call runs: the shared one, of an Adapted one."""
    return net.shared.net if isinstance(net, Adapted) else net
