"""Where a network's weights come from before distillation: a named choice.

teacher   a copy of the teacher's own
fit       a fresh network, regressed onto the teacher's velocity around the teacher's own ODE samples;
          for a teacher without weights (an exact velocity, another architecture), still without data
random    a fresh network

Where a network's weights are constrained (EDM2's rows), the copy begins with them met, whatever the teacher's are.
"""

from copy import deepcopy
from functools import lru_cache
from typing import Literal

import torch
from torch.nn.functional import mse_loss

from fgm.evaluation.conditioning import conditioning
from fgm.evaluation.sampling import draw_samples, ode_sampler
from fgm.flow.times import Uniform
from fgm.networks import VelocityModel
from fgm.networks.guidance import unwrap_guidance
from fgm.networks.lora import LoRA
from fgm.teachers.edm2 import force_weight_norm
from fgm.training.optimizers import scheduled
from fgm.training.setting import Setting

Start = Literal["teacher", "fit", "random"]

FIT_ITERATIONS, FIT_BATCH, FIT_RATE = 1000, 256, 2e-3
FIT_POOL, FIT_STEPS = 10_000, 50


def initialised(start: Start, setting: Setting) -> VelocityModel:
    """A trainable network of its own.

    Raises:
        ValueError: the teacher has no weights to copy, or start is unknown.
    """
    makers = {"teacher": teacher_network, "fit": fitted, "random": lambda s: s.net}
    if start not in makers:
        raise ValueError(f"start = {start!r} is none of {', '.join(makers)}")
    net = deepcopy(makers[start](setting)).requires_grad_(True)
    force_weight_norm(net)
    return net


def generator_and_online(
    setting: Setting, generator_start: Start, online_start: Start, adapters: LoRA | None
) -> tuple[VelocityModel, VelocityModel]:
    """The generator's network and the online one.

    Raises:
        ValueError: adapters are to start from anything but the teacher.
    """
    if adapters is None:
        return initialised(generator_start, setting), initialised(online_start, setting)
    if (generator_start, online_start) != ("teacher", "teacher"):
        raise ValueError("adapters change the teacher's weights: generator_start and online_start must be teacher")
    generator, online = adapters.networks(teacher_network(setting), setting.seed, ("generator", "online"))
    return generator, online


def teacher_network(setting: Setting) -> VelocityModel:
    net = setting.teacher and unwrap_guidance(setting.teacher)
    if net is None or not any(True for _ in net.parameters()):
        raise ValueError(f"{type(net).__name__} has no weights to copy: choose fit or random")
    return net


@lru_cache(maxsize=1)
def fitted(setting: Setting) -> VelocityModel:
    """The fresh network after FIT_ITERATIONS of regression onto the teacher, at points of the path to its samples."""
    net, data, path, teacher = deepcopy(setting.net), setting.data, setting.path, setting.teacher
    assert teacher is not None
    source = ode_sampler(teacher, path, FIT_STEPS)
    asked = conditioning(data, None, setting.seed).conditions
    pool, conditions = draw_samples(source, setting.seed, FIT_POOL, data.shape, asked, torch.device("cpu"))
    optimizer = torch.optim.AdamW(net.parameters(), FIT_RATE)
    schedule = scheduled(optimizer, FIT_ITERATIONS, 50, 1.0)
    for i in range(FIT_ITERATIONS):
        noise = setting.stream("fit", 0, i)
        chosen = torch.randint(len(pool), (FIT_BATCH,), generator=noise)
        condition = None if conditions is None else conditions[chosen]
        x_t, _, t = setting.noisy(pool[chosen], Uniform(), noise)
        with torch.no_grad():
            u = teacher(x_t, t, condition)
        loss = mse_loss(net(x_t, t, condition), u)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net
