"""Flow Generator Matching: a teacher becomes a one-step generator, without data (arXiv 2410.19310, algorithm 1).

One training step is one cycle, and every network at the end of a cycle is a consistent state:

    x_0 = g(z, condition)                                drawn once, serves both turns
    online turn, K times     |v - c|^2                   x_0 detached; moves the online network alone
    discriminator turn       where there is one, see adversary.py; moves its heads alone
    generator turn           w(t) (lambda_1 L_1 + L_2)   through x_t into u, v and c; moves the generator alone
    ema                      follows the generator

global_step counts generator updates. t, eps and x_t are float32, from streams keyed by (seed, role, rank, cycle).

Logged scalars, means over the batch and over dims:
    mismatch        |u - v|^2 on the generator's samples: THE measure of progress among these
    fgm_loss        value of the objective; NOT progress: near zero and often negative by construction (losses.py)
    online_loss     |v - c|^2 of the last online turn
    sample_mean, sample_std     of x_0; drift away from the data's means trouble
    generator_grad_norm, online_grad_norm     L2 norms before clipping
    skipped         updates left out because a gradient was not finite, both networks
    images_seen     samples generated for training, over all devices

Real images are used by two options, both off by default: an adversary (adversary.py, which also says what it logs),
and RealUID's data term (real_data.py).

Departures from the paper, each a choice in the recipe: the sample is shared by both turns (the paper draws two);
learning rates decay; times of both turns come from the same density unless online_time is given.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from fgm import losses
from fgm.evaluation.sampling import Source, many_step
from fgm.networks.generator import InputScale, OneStepGenerator
from fgm.times import TimeDensity
from fgm.training.adversary import Adversary
from fgm.training.descend import Descent, listed
from fgm.training.ema import frozen_copy, update_ema
from fgm.training.initialise import Start, initialised
from fgm.training.method import Method
from fgm.training.optimizers import scheduled
from fgm.training.real_data import RealData
from fgm.training.setting import Setting

Weighting = Callable[..., Tensor]


class Distillation(Method):
    """Trains generator and online network against setting.teacher.

    Args:
        setting: the pieces, see Setting; of setting.data only the shape, the classes and std are used.
        t_star, c_in: how the generator reads its network, see OneStepGenerator.
        lambda_1: weight of L_1; 1 is the exact gradient, 0 leaves L_2 alone.
        detach: cut the gradient inside u and v (the DMD direction).
        online_turns: K.
        generator_start, online_start: where their weights come from, see initialise.py.
        online_time: density of t in online turns; setting.time if None.
        weighting, normaliser: see losses.py.
        teacher_steps: Euler steps of the teacher shown beside the generator.
        adversary: makes the GAN term from setting and online network, see Adversary.
        real_data: makes the data term from setting, online network and online_time, see RealData.
    """

    exported = "generator"

    def __init__(
        self,
        setting: Setting,
        t_star: Annotated[float, "(0, 1]"],
        c_in: InputScale = "t_star",
        lambda_1: float = 1.0,
        detach: bool = False,
        online_turns: Annotated[int, "[1, inf)"] = 1,
        generator_start: Start = "teacher",
        online_start: Start = "teacher",
        online_time: TimeDensity | None = None,
        weighting: Weighting = losses.velocity_weight,
        normaliser: Weighting = losses.no_normaliser,
        teacher_steps: Annotated[int, "[1, inf)"] = 50,
        adversary: Callable[..., Adversary] | None = None,
        real_data: Callable[..., RealData] | None = None,
    ) -> None:
        super().__init__(setting)
        self.online_turns, self.teacher_steps = online_turns, teacher_steps
        self.lambda_1, self.detach, self.weighting, self.normaliser = lambda_1, detach, weighting, normaliser
        self.online_time = online_time or setting.time
        if setting.teacher is None:
            raise ValueError("a distillation needs a teacher: choose teacher=run, file or exact")
        self.unregistered = (setting.teacher,)  # in a tuple: frozen, and in no checkpoint
        net = initialised(generator_start, setting)
        self.generator = OneStepGenerator(net, setting.path, t_star, c_in, setting.data.std)
        self.online = initialised(online_start, setting)
        self.ema, self.start = frozen_copy(self.generator), (frozen_copy(self.generator),)
        self.descents = [Descent(name, i, self.schedule.clip) for i, name in enumerate(("generator", "online network"))]
        self.adversary = adversary(setting, self.online) if adversary else None
        self.real_data = real_data(setting, self.online, self.online_time) if real_data else None
        self.descents += [self.adversary.descent] if self.adversary else []

    @property
    def teacher(self) -> nn.Module:
        return self.unregistered[0]

    def on_fit_start(self) -> None:
        for frozen in (self.teacher, self.start[0]):
            frozen.to(self.device, self.weight_dtype).requires_grad_(False).eval()

    def configure_optimizers(self):
        s = self.schedule
        optimizers = [self.setting.optimizer(net) for net in (self.generator.net, self.online)]
        turns = [1, self.online_turns]
        schedules = [scheduled(o, s.cycles * k, s.warmup * k, s.decay) for o, k in zip(optimizers, turns, strict=True)]
        if self.adversary:
            optimizer, schedule = self.adversary.configure()
            return [*optimizers, optimizer], [*schedules, schedule]
        return optimizers, schedules

    def training_step(self, batch: Tensor) -> None:
        del batch
        cycle, (generator_optimizer, online_optimizer, *others) = int(self.cycle), listed(self.optimizers())
        online_scalars: dict[str, Tensor] = {}
        with self.toggled_optimizer(generator_optimizer):
            x_0, condition = self.generate(cycle)
        for turn in range(self.online_turns):
            with self.toggled_optimizer(online_optimizer):
                online_scalars = self.online_turn(x_0.detach(), condition, cycle * self.online_turns + turn)
        if self.adversary:
            with self.toggled_optimizer(others[0]):
                online_scalars |= self.adversary.turn(self, x_0.detach(), condition, cycle)
        with self.toggled_optimizer(generator_optimizer):
            generator_scalars = self.generator_turn(x_0, condition, cycle)
        update_ema(self.ema, self.generator, self.schedule.ema_decay)
        self.report(online_scalars | generator_scalars, sum(descent.skipped for descent in self.descents))

    def generate(self, cycle: int) -> tuple[Tensor, Tensor | None]:
        """The cycle's samples, with their graph, and the conditions that they were drawn under."""
        noise, data = self.noise("latent", cycle), self.setting.data
        shape = (self.schedule.batch_size, *data.shape)
        z = torch.randn(shape, generator=noise, dtype=self.weight_dtype, device=self.device)
        condition = data.conditions(len(z), noise)
        return self.generator(z, condition), condition

    def online_turn(self, x_0: Tensor, condition: Tensor | None, index: int) -> dict[str, Tensor]:
        x_t, c, t = self.setting.noisy(x_0, self.online_time, self.noise("online", index))
        v = self.online(x_t, t, condition).to(x_t.dtype)
        real = self.real_data
        loss = real.online_loss(self, v, c, index) if real else losses.flow_matching(v, c).mean()
        norm = self.descents[1](self, loss)
        return {"online_loss": loss.detach(), "online_grad_norm": norm}

    def generator_turn(self, x_0: Tensor, condition: Tensor | None, cycle: int) -> dict[str, Tensor]:
        s = self.setting
        x_t, c, t = s.noisy(x_0, s.time, self.noise("generator", cycle))
        u, v = (net(x_t, t, condition).to(x_t.dtype) for net in (self.teacher, self.online))
        objective = self.real_data.generator_loss if self.real_data else losses.fgm
        loss = (self.weight(x_0, x_t, t, u, v) * objective(u, v, c, self.lambda_1, self.detach)).mean()
        term, told = self.adversary.generator_turn(self, x_0, condition, cycle) if self.adversary else (0.0, {})
        norm = self.descents[0](self, loss + term)
        return told | {
            "mismatch": losses.squared_norm(u - v).detach().mean(), "fgm_loss": loss.detach(),
            "sample_mean": x_0.detach().mean(), "sample_std": x_0.detach().std(), "generator_grad_norm": norm,
        }  # fmt: skip

    @torch.no_grad()
    def weight(self, x_0: Tensor, x_t: Tensor, t: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """w(t) times the normaliser, (batch,)."""
        path = self.setting.path
        scale = self.normaliser(x_0, path.x_0_from_velocity(x_t, u, t), path.x_0_from_velocity(x_t, v, t))
        return scale * self.weighting(path, t)

    def sources(self) -> list[Source]:
        return [
            Source("one step, ema", self.ema, 1, "ema"),
            Source("one step, raw", self.generator, 1, "raw"),
            Source("start: teacher at t*", self.start[0], 1, "teacher"),
            many_step(self.teacher, self.setting.path, self.teacher_steps),
        ]

    def result(self) -> nn.Module:
        return self.ema.net
