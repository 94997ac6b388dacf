"""Classifier-free guidance: v = v_uncond + scale (v_cond - v_uncond) (arXiv 2207.12598).

A distillation applies the teacher's scale in one of three ways:

    none              to neither network
    teacher           to the teacher: the generator is matched to the guided flow
    long_and_short    to the teacher and to the online network, both where it is fitted and where it is evaluated:
                      |v - c|^2 takes the guided v, so the online network fits the guided flow of the generator's
                      samples (SiD-LSG, arXiv 2406.01561; SiD-DiT on Stable Diffusion 3, arXiv 2509.25127)
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fgm.networks import VelocityModel
from fgm.utils.validation import validated

Guidance = Literal["none", "teacher", "long_and_short"]


@validated
class ClassifierFreeGuidance(VelocityModel):
    """The guided velocity of net, in one call on a doubled batch; without a condition, net itself.

    Args:
        net: a velocity network with an unconditional input.
        scale: 1 gives net back; larger values trade diversity for agreement with the condition.

    Raises:
        ValueError: net has no unconditional input.
    """

    net: VelocityModel
    scale: float

    def __init__(self, net: VelocityModel, scale: NonNegativeFloat) -> None:
        super().__init__()
        net.unconditional(torch.zeros(1, dtype=torch.int64))  # raises if net has none
        self.net, self.scale, self.shape, self.num_classes = net, scale, net.shape, net.num_classes

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            return self.net(x_t, t)
        conditions = torch.cat([condition, self.net.unconditional(condition)])
        v_cond, v_uncond = self.net(torch.cat([x_t, x_t]), torch.cat([t, t]), conditions).chunk(2)
        return torch.lerp(v_uncond, v_cond, self.scale)

    def around(self, net: VelocityModel) -> "ClassifierFreeGuidance":
        """Return the same guidance of another network."""
        return ClassifierFreeGuidance(net, self.scale)

    def adapter_active(self) -> AbstractContextManager[None]:
        return self.net.adapter_active()


def with_guidance(net: VelocityModel, scale: float) -> VelocityModel:
    """Wrap net in guidance; for a scale of 1, which would only double the cost, return net."""
    return net if scale == 1 else ClassifierFreeGuidance(net, scale)


def unwrap_guidance(net: VelocityModel) -> VelocityModel:
    """Return the network inside the guidance wrapper, or net if it has none."""
    return net.net if isinstance(net, ClassifierFreeGuidance) else net


@validated
def apply_guidance(
    guidance: Guidance, teacher: VelocityModel, online: VelocityModel
) -> tuple[VelocityModel, VelocityModel]:
    """Return teacher and online network as the distillation calls them.

    Raises:
        ValueError: guidance is unknown, or it is long_and_short and the teacher has no scale.
    """
    if guidance == "none":
        return unwrap_guidance(teacher), online
    if guidance == "teacher":
        return teacher, online
    if not isinstance(teacher, ClassifierFreeGuidance):
        raise ValueError("guidance = long_and_short takes its scale from the teacher: give teacher.guidance")
    return teacher, teacher.around(online)
