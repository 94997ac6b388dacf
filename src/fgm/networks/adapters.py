"""Which layers of a network have low-rank adapters, how large they are, and what they start from (lora.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, nn

from fgm.networks import VelocityModel
from fgm.networks.lora import Adapted, LowRank, SharedNetwork
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # SD3's


@validated
@dataclass(frozen=True)
class LoRA:
    """
    Args:
        rank: of an adapter.
        alpha: its scale is alpha/rank.
        targets: the linear layers with an adapter: all whose name is one of these or ends with a dot and one.
        base: dtype of the shared weights; bfloat16 halves them, and is the dtype of their arithmetic too.
    """

    rank: PositiveInt = 64
    alpha: PositiveFloat = 64.0
    targets: Sequence[str] = ATTENTION
    base: Literal["float32", "bfloat16"] = "float32"

    def networks(self, net: VelocityModel, seed: int, names: Sequence[str]) -> list[Adapted]:
        """The network under one fresh adapter for each name; it is frozen from now on."""
        layers = self.layers(net)
        shared = SharedNetwork(net, layers, torch.bfloat16 if self.base == "bfloat16" else None)
        return [Adapted(shared, self.adapter(layers, keyed_generator(seed, "lora", name, index=0))) for name in names]

    def layers(self, net: nn.Module) -> dict[str, nn.Linear]:
        """
        Raises:
            ValueError: there is none.
        """
        linear = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
        found = {n: layer for n, layer in linear.items() if any(f".{n}".endswith(f".{t}") for t in self.targets)}
        if not found:
            last = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"adapters.targets match no linear layer of {type(net).__name__}; it has {', '.join(last)}"
            )
        return found

    def adapter(self, layers: dict[str, nn.Linear], noise: Generator) -> nn.Module:
        """A LowRank at each layer's place in an otherwise empty tree of modules."""
        root = nn.Module()
        for name, layer in layers.items():
            node, (*parents, last) = root, name.split(".")
            for parent in parents:
                if parent not in dict(node.named_children()):
                    node.add_module(parent, nn.Module())
                node = node.get_submodule(parent)
            node.add_module(last, LowRank(layer, self.rank, self.alpha / self.rank, noise))
        return root
