"""Guidance as each family's pipeline applies it, from the velocities under the condition, v, and without it, v_0.

    classifier_free    v_0 + s (v - v_0)                                 off at s = 1
    excess             v + s (v - v_0), which is 1 + s above             off at s = 0; Z-Image
    rescaled           y |v| / |y|,  y = v_0 + s (v - v_0)               off at s = 1; Qwen-Image, Lumina2

Norms are those of the last axis of the transformer's layout: of a token in Qwen-Image, of a row of latents in Lumina2. A
guidance that is embedded (FLUX.1 dev) is an input of the transformer instead, see adapter.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fgm.networks import VelocityModel
from fgm.networks.guidance import ClassifierFreeGuidance

Rule = Callable[[Any, Tensor, Tensor, float], Tensor]  # (family, v, v_0, s) -> guided velocity


def classifier_free(family: Any, v: Tensor, v_0: Tensor, s: float) -> Tensor:
    del family
    return torch.lerp(v_0, v, s)


def excess(family: Any, v: Tensor, v_0: Tensor, s: float) -> Tensor:
    del family
    return torch.lerp(v_0, v, 1 + s)


def rescaled(family: Any, v: Tensor, v_0: Tensor, s: float) -> Tensor:
    y, layout = torch.lerp(v_0, v, s), family.layout
    y_packed, v_packed = layout.pack(y), layout.pack(v)
    return layout.unpack(y_packed * (v_packed.norm(dim=-1, keepdim=True) / y_packed.norm(dim=-1, keepdim=True)), y)


class FamilyGuidance(ClassifierFreeGuidance):
    """The velocity of net under its family's guidance; without a condition, net itself.

    The two velocities take a call each: encodings of other lengths, without a mask, do not fit into one batch.

    Args:
        net: a velocity of transformers of one family, see adapter.py.
        scale: the pipeline's guidance_scale, or its true_cfg_scale if it has one.
        family: of net, if net does not know it, such as a LoRAModel.
    """

    family: Any

    def __init__(self, net: VelocityModel, scale: NonNegativeFloat, family: Any = None) -> None:
        super().__init__(net, scale)
        self.family = family or net.family

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        if condition is None:
            return self.net(x_t, t)
        v, v_0 = self.net(x_t, t, condition), self.net(x_t, t, self.net.unconditional(condition))
        return self.family.guidance(self.family, v, v_0, self.scale)

    def around(self, net: VelocityModel) -> "FamilyGuidance":
        return FamilyGuidance(net, self.scale, self.family)
