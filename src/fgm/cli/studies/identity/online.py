"""The online network's turns on a generator that is held: the recipe's own loss, clip and schedule without a trainer.

Each turn draws fresh samples, since there is no generator's turn to share them with.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fgm.cli.studies.identity.cases import Case
from fgm.cli.studies.identity.gradients import Draws, Problem
from fgm.networks import VelocityModel
from fgm.training.distillation import Distillation
from fgm.training.ema import frozen_copy
from fgm.training.optimizers import scheduled
from fgm.training.precision import bf16_mixed


def draws_of(module: Distillation, part: int, n: int) -> Draws:
    setting, stream = module.setting, module.noise("identity", part)
    z, condition = sampled(module, n, stream)
    t = setting.time.sample(n, stream)
    return Draws(z, condition, torch.randn(z.shape, generator=stream, device=module.device), t)


def sampled(module: Distillation, n: int, stream: Generator) -> tuple[Tensor, Tensor | None]:
    data = module.setting.data
    z = torch.randn((n, *data.shape), generator=stream, device=module.device)
    return z, data.conditions(n, stream)


def fitted(module: Distillation, problem: Problem, case: Case, precision: str) -> Iterator[tuple[int, VelocityModel]]:
    """Frozen copies of the online network after case.turns and case.reference turns on the generator's samples."""
    schedule, online = module.schedule, module.velocities()[1]
    optimizer = module.online_optimizer(module.online)
    rates = scheduled(optimizer, case.reference, schedule.warmup * module.online_turns, 0.5)
    for turn in range(case.reference):
        stream = module.noise("online", turn)
        z, condition = sampled(module, schedule.batch_size, stream)
        with torch.no_grad():
            x_0 = problem.generator(z, condition)
        x_t, c, t = module.setting.noisy(x_0, module.online_time, stream)
        with arithmetic(precision, module.device.type):
            module.online_part(x_t, c, t, condition)[0].backward()
        nn.utils.clip_grad_norm_(module.online.parameters(), schedule.clip)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        if turn + 1 in (*case.turns, case.reference):
            yield turn + 1, frozen_copy(online)


def arithmetic(precision: str, device: str) -> AbstractContextManager[Any]:
    """Of a training step, as the recipe's trainer has it."""
    return bf16_mixed(device).train_step_context() if precision == "bf16-mixed" else nullcontext()
