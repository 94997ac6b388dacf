"""Flow Generator Matching: a teacher becomes a one-step generator, without data (arXiv 2410.19310, algorithm 1).

One training step is one cycle, and every network at the end of a cycle is a consistent state:

    x_0 = g(z, condition)                                drawn once, serves both turns
    online turn, K times     |v - c|^2                   x_0 detached; moves the online network alone
    discriminator turn       where there is one, see adversary.py; moves its heads alone
    generator turn           w(t) (lambda_1 L_1 + L_2)   through x_t into u, v and c; moves the generator alone
    ema                      follows the generator

A generator of k steps runs to a step that is drawn each cycle, the same on every rank; its gradient is that step's
alone, and the online network is fitted to the mixture of all (arXiv 2509.25127).

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

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgm import losses
from fgm.errors import Refusal
from fgm.evaluation.sampling import Source, generator_source, many_step
from fgm.networks import Velocity
from fgm.networks.adapters import LoRA
from fgm.networks.constraints import constrained
from fgm.networks.generator import FewStepGenerator, InputScale
from fgm.networks.guidance import Guidance, unguided
from fgm.networks.half import halve
from fgm.networks.lora import own, trained_part
from fgm.streams import stream
from fgm.times import TimeDensity
from fgm.training.adversary import Adversary
from fgm.training.descend import Descent, listed
from fgm.training.ema import frozen_copy, update_ema
from fgm.training.initialise import Start, generator_and_online
from fgm.training.micro_batches import cut, slices
from fgm.training.objective import Objective, Weighting
from fgm.training.optimizers import scheduled
from fgm.training.real_data import RealData
from fgm.training.setting import Setting
from fgm.training.turns import Turns


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
        t_star: Annotated[float, "(0, 1]"],
        c_in: InputScale = "t_star",
        lambda_1: float = 1.0,
        detach: bool = False,
        online_turns: Annotated[int, "[1, inf)"] = 1,
        generator_start: Start = "teacher",
        online_start: Start = "teacher",
        online_time: TimeDensity | None = None,
        online_optimizer: Callable[[nn.Module], Optimizer] | None = None,
        weighting: Weighting = losses.velocity_weight,
        normaliser: Weighting = losses.no_normaliser,
        teacher_steps: Annotated[int, "[1, inf)"] = 50,
        steps: Annotated[int, "[1, inf)"] = 1,
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
        net, self.online = generator_and_online(setting, generator_start, online_start, adapters)
        _, online = self.velocities()  # raises where guidance does not fit
        shares = generator_start == "teacher" and adapters is None
        start = unguided(setting.teacher) if shares else frozen_copy(net)  # as the teacher's own, it takes no memory
        self.read_as_generators(net, start, t_star=t_star, c_in=c_in, steps=steps)
        self.adversary = adversary(setting, self.online) if adversary else None
        self.real_data = real_data(setting, online, self.online_time) if real_data else None
        self.descents = [Descent(name, i, self.schedule.clip) for i, name in enumerate(("generator", "online network"))]
        self.descents += [self.adversary.descent] if self.adversary else []
        loss = self.real_data.generator_loss if self.real_data else losses.fgm
        together = two_stage or adapters is not None
        self.objective = Objective(setting.path, lambda_1, detach, weighting, normaliser, loss, together)
        self.half_teacher = half_teacher
        if half_teacher:
            halve(unguided(setting.teacher))

    def read_as_generators(self, net: Velocity, start: Velocity, **how: Any) -> None:
        """The generator and its average, of net, and what the generator starts as; how: see FewStepGenerator."""
        reading = partial(FewStepGenerator, path=self.setting.path, data_std=self.setting.data.std, **how)
        self.generator, self.start = reading(net), (reading(start).eval(),)
        self.average(self.generator)

    def on_fit_start(self) -> None:
        if self.half_teacher and self.weight_dtype != torch.float32:
            raise Refusal("method.half_teacher = true: bfloat16 beside float64 weights; leave one of them out")
        for frozen in (self.teacher, self.start[0]):
            frozen.to(self.device, None if self.half_teacher else self.weight_dtype).requires_grad_(False).eval()

    def configure_optimizers(self):
        s = self.schedule
        makers = {self.generator.net: self.setting.optimizer, self.online: self.online_optimizer}
        optimizers = [constrained(make(net), net) for net, make in makers.items()]
        turns = [1, self.online_turns]
        schedules = [scheduled(o, s.cycles * k, s.warmup * k, s.decay) for o, k in zip(optimizers, turns, strict=True)]
        if self.adversary:
            optimizer, schedule = self.adversary.configure()
            return [*optimizers, optimizer], [*schedules, schedule]
        return optimizers, schedules

    def training_step(self, batch: Tensor) -> None:
        del batch
        with self.prompts_held():
            self.turns_of_a_cycle()

    @contextmanager
    def prompts_held(self) -> Iterator[None]:
        """Encoded prompts are read once a cycle; real images come with others, and then with every call."""
        nets = [] if self.adversary or self.real_data else [own(unguided(net)) for net in self.networks()]
        texts = {id(m): m for net in nets for m in net.modules() if hasattr(m, "holding")}
        condition = self.latents(int(self.cycle), slice(None))[1] if texts else None
        with ExitStack() as stack:
            for text in texts.values():
                stack.enter_context(text.holding(condition))  # type: ignore[operator]
            yield

    def turns_of_a_cycle(self) -> None:
        cycle, (generator_optimizer, online_optimizer, *others) = int(self.cycle), listed(self.optimizers())
        online_scalars: dict[str, Tensor] = {}
        with self.toggled_optimizer(generator_optimizer):
            x_0, condition = self.generate(cycle)
        for turn in range(self.online_turns):
            with self.toggled_optimizer(online_optimizer):
                online_scalars = self.online_turn(x_0.detach(), condition, cycle * self.online_turns + turn)
        if self.adversary:
            with self.toggled_optimizer(others[0]), self.adversary.net.active():
                online_scalars |= self.adversary.turn(self, x_0.detach(), condition, cycle)
        with self.toggled_optimizer(generator_optimizer):
            generator_scalars = self.generator_turn(x_0, condition, cycle)
        self.finish(online_scalars | generator_scalars)

    def finish(self, scalars: dict[str, Tensor]) -> None:
        """What a cycle does beside its turns."""
        update_ema(self.ema, self.generator, self.schedule.ema_decay)
        self.report(scalars, sum(descent.skipped for descent in self.descents))

    def generate(self, cycle: int) -> tuple[Tensor, Tensor | None]:
        """The cycle's samples and the conditions that they were drawn under; with their graph if they are one part."""
        parts = slices(self.schedule.batch_size, self.schedule.micro_batches)
        given = [self.latents(cycle, where) for where in parts]
        if len(parts) == 1:
            return self.generator(*given[0]), given[0][1]
        with torch.no_grad():
            x_0 = torch.cat([self.generator(*part) for part in given])
        conditions = [condition for _, condition, _ in given if condition is not None]
        return x_0, torch.cat(conditions) if conditions else None

    def latents(self, cycle: int, where: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        noise, data = self.noise("latent", cycle), self.setting.data
        shape = (self.schedule.batch_size, *data.shape)
        z = torch.randn(shape, generator=noise, dtype=self.weight_dtype, device=self.device)
        condition = data.conditions(len(z), noise)
        eps = self.renoising(z, cycle)
        return *cut(where, z, condition), None if eps is None else eps[:, where]

    def renoising(self, z: Tensor, cycle: int) -> Tensor | None:
        """The noises before the step that is trained in this cycle: 0 to steps - 1 of them, as many on every rank."""
        if not self.generator.renoisings:
            return None
        count = torch.randint(self.generator.nfe, (), generator=stream(self.setting.seed, "step", index=cycle))
        noise = self.noise("renoising", cycle)
        return torch.randn((int(count), *z.shape), generator=noise, dtype=z.dtype, device=z.device)

    def sources(self) -> list[Source]:
        n = self.generator.nfe
        return [
            generator_source(self.ema, "ema"),
            generator_source(self.generator, "raw"),
            Source("start: teacher at t*", self.start[0], n, "teacher" if n == 1 else "start"),
            many_step(self.teacher, self.setting.path, self.teacher_steps),
        ]

    def networks(self) -> list[Velocity]:
        nets = [self.generator.net, self.online, self.ema.net, unguided(self.teacher), self.start[0].net]
        return list({id(own(net)): own(net) for net in nets if any(True for _ in net.parameters())}.values())

    def result(self) -> nn.Module:
        return trained_part(self.ema.net)
