"""Flow Generator Matching: a teacher becomes a one-step generator, without data (arXiv 2410.19310, algorithm 1).

A distillation is put together here; what it does in one training step, a whole cycle, and what it logs, is in turns.py.

Real images are used by two options, both off by default: an adversary (adversary.py, which also says what it logs),
and RealUID's data term (real_data.py).

Departures from the paper, each a choice in the recipe: the sample is shared by both turns (the paper draws two);
learning rates decay; times of both turns come from the same density unless online_time is given.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.optim import Optimizer

from fgm.evaluation.sampling import Sampler, generator_sampler, ode_sampler
from fgm.flow import losses
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.networks.generator import FewStepGenerator, InputScale
from fgm.networks.guidance import Guidance, unwrap_guidance
from fgm.networks.lora import LoRA, base_model, trainable_module
from fgm.networks.mixed_precision import use_bfloat16
from fgm.teachers.edm2 import keep_weight_norm
from fgm.training.adversary import Adversary
from fgm.training.descend import Descent
from fgm.training.ema import frozen_copy
from fgm.training.initialise import Start, generator_and_online
from fgm.training.objective import Objective, Weighting
from fgm.training.optimizers import scheduled
from fgm.training.real_data import RealData
from fgm.training.setting import Setting
from fgm.training.turns import Turns
from fgm.utils.errors import UserError
from fgm.utils.validation import validated


@validated
class Distillation(Turns):
    """Trains generator and online network against setting.teacher.

    Args:
        setting: the pieces, see Setting; of setting.data only the shape, the classes and std are used.
        t_star, c_in, steps: how the generator reads its network, see FewStepGenerator.
        lambda_1: weight of L_1; 1 is the exact gradient, 0 leaves L_2 alone.
        detach: cut the gradient inside u and v (the DMD direction).
        online_turns: K.
        generator_start, online_start: where their weights come from, see initialise.py.
        online_time: density of t in online turns; setting.time if None.
        online_optimizer: from the online network to its optimizer; setting.optimizer if None.
        weighting, normaliser: see losses.py.
        teacher_steps: Euler steps of the teacher shown beside the generator.
        guidance: where the teacher's scale of guidance stands, see guidance.py.
        two_stage: hold one network's graph at a time in the generator turn, see two_stage.py; always so with adapters.
        adapters: train adapters on the teacher's own, shared weights in place of whole networks, see lora.py.
        adversary: makes the GAN term from setting and online network, see Adversary.
        real_data: makes the data term from setting, online network and online_time, see RealData.
        half_teacher: keep the teacher's matrices in bfloat16 and compute with them so, see networks/half.py.
    """

    exported = "generator"

    def __init__(
        self,
        setting: Setting,
        t_star: Annotated[float, Field(gt=0, le=1)],
        c_in: InputScale = "t_star",
        lambda_1: float = 1.0,
        detach: bool = False,
        online_turns: PositiveInt = 1,
        generator_start: Start = "teacher",
        online_start: Start = "teacher",
        online_time: TimestepDensity | None = None,
        online_optimizer: Callable[[nn.Module], Optimizer] | None = None,
        weighting: Weighting = losses.velocity_weight,
        normaliser: Weighting = losses.no_normaliser,
        teacher_steps: PositiveInt = 50,
        steps: PositiveInt = 1,
        guidance: Guidance = "teacher",
        two_stage: bool = False,
        adapters: LoRA | None = None,
        adversary: Callable[..., Adversary] | None = None,
        real_data: Callable[..., RealData] | None = None,
        half_teacher: bool = False,
    ) -> None:
        super().__init__(setting)
        if setting.teacher is None:
            raise ValueError("a distillation needs a teacher: choose teacher=run, file or exact")
        if half_teacher and adapters:
            raise ValueError("half_teacher is for whole networks: adapters.base is the dtype of what adapters share")
        self.unregistered = (setting.teacher,)  # in a tuple: frozen, and in no checkpoint
        self.online_turns, self.teacher_steps, self.guidance = online_turns, teacher_steps, guidance
        self.online_time, self.online_optimizer = online_time or setting.time, online_optimizer or setting.optimizer
        std = setting.data.std
        reading = partial(FewStepGenerator, path=setting.path, t_star=t_star, c_in=c_in, data_std=std, steps=steps)
        self.start_from(generator_start, online_start, adapters, reading)
        self.use_real_images(adversary, real_data)
        loss = self.real_data.generator_loss if self.real_data else losses.fgm
        together = two_stage or adapters is not None
        self.objective = Objective(setting.path, lambda_1, detach, weighting, normaliser, loss, together)
        self.half_teacher = half_teacher
        if half_teacher:
            use_bfloat16(unwrap_guidance(setting.teacher))

    def start_from(
        self, generator_start: Start, online_start: Start, adapters: LoRA | None, reading: Callable[..., Any]
    ) -> None:
        """The online network, the generator and its average, and in a tuple what the generator starts as."""
        net, self.online = generator_and_online(self.setting, generator_start, online_start, adapters)
        shares = generator_start == "teacher" and adapters is None
        start = (
            unwrap_guidance(self.teacher) if shares else frozen_copy(net)
        )  # as the teacher's own, it takes no memory
        self.generator, self.start = reading(net), (reading(start).eval(),)
        self.average(self.generator)

    def use_real_images(self, adversary: Callable[..., Adversary] | None, real_data: Callable[..., RealData] | None):
        """Where there are any; and with the adversary's, all updates of a cycle."""
        _, online = self.velocities()  # raises where guidance does not fit
        self.adversary = adversary(self.setting, self.online) if adversary else None
        self.real_data = real_data(self.setting, online, self.online_time) if real_data else None
        self.descents = [Descent(name, i, self.schedule.clip) for i, name in enumerate(("generator", "online network"))]
        self.descents += [self.adversary.descent] if self.adversary else []

    def on_fit_start(self) -> None:
        if self.half_teacher and self.weight_dtype != torch.float32:
            raise UserError("method.half_teacher = true: bfloat16 beside float64 weights; leave one of them out")
        for frozen in (self.teacher, self.start[0]):
            frozen.to(self.device, None if self.half_teacher else self.weight_dtype).requires_grad_(False).eval()

    def configure_optimizers(self):
        s = self.schedule
        makers = {self.generator.net: self.setting.optimizer, self.online: self.online_optimizer}
        optimizers = [keep_weight_norm(make(net), net) for net, make in makers.items()]
        turns = [1, self.online_turns]
        schedules = [scheduled(o, s.cycles * k, s.warmup * k, s.decay) for o, k in zip(optimizers, turns, strict=True)]
        if self.adversary:
            optimizer, schedule = self.adversary.configure()
            return [*optimizers, optimizer], [*schedules, schedule]
        return optimizers, schedules

    def sources(self) -> list[Sampler]:
        n = self.generator.nfe
        return [
            generator_sampler(self.ema, "ema"),
            generator_sampler(self.generator, "raw"),
            Sampler("start: teacher at t*", self.start[0], n, "teacher" if n == 1 else "start"),
            ode_sampler(self.teacher, self.setting.path, self.teacher_steps),
        ]

    def networks(self) -> list[VelocityModel]:
        nets = [self.generator.net, self.online, self.ema.net, unwrap_guidance(self.teacher), self.start[0].net]
        return list(
            {id(base_model(net)): base_model(net) for net in nets if any(True for _ in net.parameters())}.values()
        )

    def result(self) -> nn.Module:
        return trainable_module(self.ema.net)
