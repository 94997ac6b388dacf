"""A discriminator on a velocity network's features: a small head on the output of each of some blocks.

    l_k(x_t, t, condition) = head_k(output of block k at (x_t, t, condition)), one logit per token

DMD2 reads the online network this way, with a head at the bottleneck (arXiv 2405.14867); LADD reads the frozen teacher,
with a head on each of several blocks (arXiv 2403.12015). Time and condition reach the logits through the features, which
they modulate. The velocity network is no part of the Discriminator, whose parameters are those of the heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgm.networks import VelocityModel, zeroed
from fgm.networks.guidance import unwrap_guidance
from fgm.networks.lora import base_model


class Head(nn.Module):
    """Tokens (batch, n, features) -> logits (batch, n), 0 for a new head, which gives the generator no gradient."""

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
        features: features_k of each block.
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
    """Return the outputs of the named blocks of net at (x_t, t, condition) as tokens (batch, n, width).

    A guided network is read inside its guidance, in one call with the condition itself.

    Raises:
        ValueError: net has no block of that name, or several.
    """
    inner = unwrap_guidance(net)
    with capture_outputs(base_model(inner), blocks) as tokens:
        inner(x_t, t, condition)
    return [tokens[name] for name in blocks]


@torch.no_grad()
def feature_widths(net: VelocityModel, blocks: Sequence[str], condition: Tensor | None) -> list[int]:
    """Return the widths of those tokens; condition is one example (1, ...) or None.

    Runs on the meta device, which computes nothing. A network that looks its condition up in files cannot: it is
    called once on a batch of one.
    """
    inner = base_model(unwrap_guidance(net))
    tensors = dict(inner.named_parameters()) | dict(inner.named_buffers())
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    arguments = (torch.zeros(1, *net.shape), torch.ones(1), condition)
    with capture_outputs(inner, blocks) as tokens:
        try:
            functional_call(inner, on_meta, tuple(a if a is None else a.to("meta") for a in arguments))
        except (NotImplementedError, RuntimeError):
            inner(*arguments)
    return [tokens[name].shape[2] for name in blocks]


@contextmanager
def capture_outputs(net: nn.Module, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that forward passes inside the context fill with the named blocks' outputs as tokens."""
    tokens: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tokens[name] = as_tokens(output if isinstance(output, Tensor) else output[-1])  # (text, image): the image

        return hook

    hooks = [find_block(net, name).register_forward_hook(hook_for(name)) for name in blocks]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()


def as_tokens(features: Tensor) -> Tensor:
    """Turn a vector (b, w) into one token, and a map (b, w, height, width) into a token per pixel."""
    if features.ndim == 2:
        return features[:, None]
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def find_block(net: nn.Module, name: str) -> nn.Module:
    """Return the one submodule whose qualified name is or ends in name, whatever wraps the network.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [module for full_name, module in net.named_modules() if f".{full_name}".endswith(f".{name}")]
    if len(found) != 1:
        lists = [f"{n} (0 to {len(m) - 1})" for n, m in net.named_modules() if isinstance(m, nn.ModuleList)]
        raise ValueError(
            f"{type(net).__name__} has {len(found) or 'no'} blocks named {name!r}: choose of {', '.join(lists)}"
        )
    return found[0]
