"""Classifier-free guidance as a wrapper: v = v_null + scale (v_condition - v_null) (arXiv 2207.12598).

In a distillation it may stand in two places, and the teacher's scale is the scale of both:

    none              neither
    teacher           the teacher alone: the generator is matched to the guided flow
    long_and_short    the teacher; and the online network, where it is fitted and where it is evaluated: |v - c|^2 has
                      the guided v, so that what is fitted is the guided flow of the generator's samples
                      (SiD-LSG, arXiv 2406.01561; SiD-DiT trains Stable Diffusion 3 so, arXiv 2509.25127)
"""

from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fgm.networks import VelocityModel
from fgm.utils.validation import validated

Guidance = Literal["none", "teacher", "long_and_short"]


@validated
class Guided(VelocityModel):
    """A velocity from a conditional one and its null class; one call of net, on a doubled batch.

    Args:
        net: a velocity network with a null condition.
        scale: 1 gives net back, larger favours the condition over diversity.
    """

    net: VelocityModel
    scale: float

    def __init__(self, net: VelocityModel, scale: NonNegativeFloat) -> None:
        super().__init__()
        net.null(torch.zeros(1, dtype=torch.int64))  # raises where there is no null condition
        self.net, self.scale, self.shape, self.num_classes = net, scale, net.shape, net.num_classes

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            return self.net(x_t, t)
        both = self.net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([condition, self.net.null(condition)]))
        v, v_null = both.chunk(2)
        return torch.lerp(v_null, v, self.scale)

    def active(self) -> AbstractContextManager[None]:
        return self.net.active()


def guided(net: VelocityModel, scale: float) -> VelocityModel:
    """net itself where the scale is 1, and half the calls with it."""
    return net if scale == 1 else Guided(net, scale)


def unguided(net: VelocityModel) -> VelocityModel:
    """The network without its guidance, where it has some."""
    return net.net if isinstance(net, Guided) else net


def guided_pair(
    guidance: Guidance, teacher: VelocityModel, online: VelocityModel
) -> tuple[VelocityModel, VelocityModel]:
    """Teacher and online network as the distillation calls them.

    Raises:
        ValueError: guidance is unknown, or long_and_short and the teacher has no scale.
    """
    if guidance not in get_args(Guidance):
        raise ValueError(f"guidance = {guidance!r} is none of {', '.join(get_args(Guidance))}")
    if guidance == "none":
        return unguided(teacher), online
    if guidance == "teacher":
        return teacher, online
    if not isinstance(teacher, Guided):
        raise ValueError("guidance = long_and_short takes its scale from the teacher: give teacher.guidance")
    return teacher, Guided(online, teacher.scale)
