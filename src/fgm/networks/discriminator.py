"""A discriminator out of a velocity network's features: small heads, each on the output of one of its blocks.

    l_k(x_t, t, condition) = head_k(features of block k at (x_t, t, condition)), one logit for each token

DMD2 reads the online network so, with its head at the bottleneck (arXiv 2405.14867); LADD the frozen teacher, with a
head on each of several blocks (arXiv 2403.12015). Time and condition reach the logits through the features, which are
modulated by both. The velocity network is not a part of the discriminator: its weights are not the heads' to move.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgm.networks import VelocityModel, zeroed
from fgm.networks.guidance import unwrap_guidance
from fgm.networks.lora import base_model


class Head(nn.Module):
    """Tokens (batch, n, features) -> logits (batch, n); a fresh one says 0, and leaves the generator alone."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, width), nn.SiLU(), zeroed(nn.Linear(width, 1))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens).squeeze(2)


class Discriminator(nn.Module):
    """Features of each block, (batch, n_k, features_k), -> logits (batch, sum of n_k).

    Args:
        features: how wide each block's tokens are, one head for each.
        width: of the heads' hidden layer.
    """

    def __init__(self, features: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(n, width) for n in features)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(tokens) for head, tokens in zip(self.heads, features, strict=True)], 1)


def read_features(
    net: VelocityModel, blocks: Sequence[str], x_t: Tensor, t: Tensor, condition: Tensor | None
) -> list[Tensor]:
    """What the named blocks of net put out at (x_t, t, condition), as tokens (batch, n, width), in blocks' order.

    Of a guided network it is the features inside guidance: those of one call, at the condition itself.
    """
    inner = unwrap_guidance(net)
    with catching(base_model(inner), blocks) as caught:
        inner(x_t, t, condition)
    return [caught[name] for name in blocks]


@torch.no_grad()
def feature_widths(net: VelocityModel, blocks: Sequence[str], condition: Tensor | None) -> list[int]:
    """How wide those tokens are. condition: (1, ...) or None.

    From shapes alone, and nothing is computed; a network that looks its condition up in files has no shapes without
    numbers, and is called once, on a batch of one.
    """
    inner = base_model(unwrap_guidance(net))
    tensors = dict(inner.named_parameters()) | dict(inner.named_buffers())
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    arguments = (torch.zeros(1, *net.shape), torch.ones(1), condition)
    with catching(inner, blocks) as caught:
        try:
            functional_call(inner, on_meta, tuple(a if a is None else a.to("meta") for a in arguments))
        except (NotImplementedError, RuntimeError):
            inner(*arguments)
    return [caught[name].shape[2] for name in blocks]


@contextmanager
def catching(net: nn.Module, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The named blocks' outputs as tokens, filled by forward passes within."""
    caught: dict[str, Tensor] = {}
    modules = {name: find_block(net, name) for name in blocks}
    hooks = [module.register_forward_hook(partial(catch, caught, name)) for name, module in modules.items()]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def catch(caught: dict[str, Tensor], name: str, module: nn.Module, arguments: Any, output: Any) -> None:
    """A forward hook. Of a joint block's pair (text, image) it keeps the image's tokens."""
    del module, arguments
    caught[name] = as_tokens(output if isinstance(output, Tensor) else output[-1])


def as_tokens(features: Tensor) -> Tensor:
    """A vector (b, w) is one token, and a map (b, w, height, width) a token for each pixel."""
    if features.ndim == 2:
        return features[:, None]
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def find_block(net: nn.Module, name: str) -> nn.Module:
    """The one submodule whose qualified name is, or ends in, name: wrappers around the network do not matter.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [module for whole, module in net.named_modules() if f".{whole}".endswith(f".{name}")]
    if len(found) != 1:
        lists = [f"{n} (0 to {len(m) - 1})" for n, m in net.named_modules() if isinstance(m, nn.ModuleList)]
        raise ValueError(
            f"{type(net).__name__} has {len(found) or 'no'} blocks named {name!r}: choose of {', '.join(lists)}"
        )
    return found[0]
