"""One cycle of a distillation: what it draws, what each turn computes, and whose weights it moves.

    x_0 = g(z, condition)                                drawn once, serves both turns
    online turn, K times     |v - c|^2                   x_0 detached; moves the online network alone
    discriminator turn       where there is one, see adversary.py; moves its heads alone
    generator turn           w(t) (lambda_1 L_1 + L_2)   through x_t into u, v and c; moves the generator alone
                             plus the GAN term, where there is one
    ema                      follows the generator

Every network at the end of a cycle is a consistent state, and global_step counts generator updates. t, eps and x_t are
float32, from streams keyed by (seed, role, rank, cycle). Every backward runs while the network that it goes through is
active, see VelocityModel.adapter_active().

A generator of k steps runs to a step that is drawn each cycle, the same on every rank; its gradient is that step's
alone, and the online network is fitted to the mixture of all (arXiv 2509.25127).

Logged scalars, means over the batch and over dims:
    mismatch        |u - v|^2 on the generator's samples: THE measure of progress among these
    fgm_loss        value of the objective; NOT progress: near zero and often negative by construction (losses.py)
    online_loss     |v - c|^2 of the last online turn
    sample_mean, sample_std     of x_0; drift away from the data's means trouble
    generator_grad_norm, online_grad_norm     L2 norms before clipping
    skipped         updates left out because a gradient was not finite, both networks
    images_seen     samples generated for training, over all devices
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from fgm.flow import losses
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.networks.generator import FewStepGenerator
from fgm.networks.guidance import Guidance, apply_guidance, unwrap_guidance
from fgm.networks.lora import base_model
from fgm.training.adversary import Adversary
from fgm.training.descend import listed
from fgm.training.ema import update_ema
from fgm.training.method import Method
from fgm.training.micro_batches import InTurn, Summed, Told, cut, in_turn, rooted, slices
from fgm.training.objective import Objective
from fgm.training.real_data import RealData
from fgm.training.two_stage import Branch
from fgm.utils.random import keyed_generator


class Turns(Method):
    """The cycle, and what it needs of a distillation.

    Attributes:
        generator, online: the networks that are trained; the teacher is unregistered[0].
        online_turns: K.
        objective: the generator's.
        guidance: where the teacher's scale stands, see guidance.py.
        online_time: density of t in online turns.
        adversary, real_data: how real images are used, if they are.
        descents: of generator, online network and discriminator.
    """

    generator: FewStepGenerator
    online: VelocityModel
    online_turns: int
    unregistered: tuple[VelocityModel, ...]
    objective: Objective
    guidance: Guidance
    online_time: TimestepDensity
    adversary: Adversary | None
    real_data: RealData | None

    @property
    def teacher(self) -> VelocityModel:
        return self.unregistered[0]

    def velocities(self) -> tuple[VelocityModel, VelocityModel]:
        """Teacher and online network, under guidance."""
        return apply_guidance(self.guidance, self.teacher, self.online)

    def training_step(self, batch: Tensor) -> None:
        del batch
        with self.prompts_held():
            self.turns_of_a_cycle()

    @contextmanager
    def prompts_held(self) -> Iterator[None]:
        """Encoded prompts are read once a cycle; real images come with others, and then with every call."""
        nets = [] if self.adversary or self.real_data else [base_model(unwrap_guidance(net)) for net in self.networks()]
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
            with self.toggled_optimizer(others[0]), self.adversary.net.adapter_active():
                online_scalars |= self.adversary.turn(self, x_0.detach(), condition, cycle)
        with self.toggled_optimizer(generator_optimizer):
            generator_scalars = self.generator_turn(x_0, condition, cycle)
        self.finish(online_scalars | generator_scalars)

    def finish(self, scalars: dict[str, Tensor]) -> None:
        """What a cycle does beside its turns."""
        update_ema(self.ema, self.generator, self.schedule.ema_decay)
        self.report(scalars)

    def generate(self, cycle: int) -> tuple[Tensor, Tensor | None]:
        """The cycle's samples and the conditions that they were drawn under; with their graph if they are one part."""
        parts = slices(self.schedule.batch_size, self.schedule.micro_batches)
        z, condition, eps = self.latents(cycle, slice(None))
        if len(parts) == 1:
            return self.generator(z, condition, eps), condition
        with torch.no_grad():
            x_0 = torch.cat([self.generator(*self.latents(cycle, where)) for where in parts])
        return x_0, condition

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
        count = torch.randint(self.generator.nfe, (), generator=keyed_generator(self.setting.seed, "step", index=cycle))
        noise = self.noise("renoising", cycle)
        return torch.randn((int(count), *z.shape), generator=noise, dtype=z.dtype, device=z.device)

    def online_turn(self, x_0: Tensor, condition: Tensor | None, index: int) -> dict[str, Tensor]:
        x_t, c, t = self.setting.noisy(x_0, self.online_time, self.noise("online", index))
        real = self.real_data.drawn(self, index) if self.real_data else None
        parts = Summed(self.online_part, self.schedule.micro_batches, x_t, c, t, condition, *(real or [None] * 4))
        with self.velocities()[1].adapter_active():
            norm = self.descents[1](self, *parts.losses())
        return parts.told | {"online_grad_norm": norm}

    def online_part(
        self, x_t: Tensor, c: Tensor, t: Tensor, condition: Tensor | None, *real: Tensor | None
    ) -> tuple[Tensor, Told]:
        v = self.velocities()[1](x_t, t, condition).to(x_t.dtype)
        matched = self.real_data.online_loss(v, c, *real) if self.real_data else losses.flow_matching(v, c).mean()
        return matched, {"online_loss": matched}

    def generator_turn(self, x_0: Tensor, condition: Tensor | None, cycle: int) -> dict[str, Tensor]:
        """x_0 carries the generator's graph, or none where the batch comes in parts."""
        parts = self.schedule.micro_batches
        x_0 = x_0 if parts == 1 else x_0.detach().requires_grad_()
        x_t, c, t = self.setting.noisy(x_0, self.setting.time, self.noise("generator", cycle))
        root, told = rooted(self.generator_part, parts, (x_t, c), x_0.detach(), t, condition)
        term, also = self.gan_term(x_0, condition, cycle)
        with self.generator.adapter_active():
            norm = self.descents[0](self, *self.through_generator(root + term, x_0, cycle))
        return also | told | {
            "sample_mean": x_0.detach().mean(), "sample_std": x_0.detach().std(), "generator_grad_norm": norm,
        }  # fmt: skip

    def generator_part(
        self, x_t: Tensor, c: Tensor, x_0: Tensor, t: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Told]:
        teacher, online = (Branch(net, t, condition) for net in self.velocities())
        u, v, loss, root = self.objective(x_0, x_t, c, teacher, online)
        return root, {"mismatch": losses.squared_norm(u - v).detach().mean(), "fgm_loss": loss.detach()}

    def through_generator(self, root: Tensor, x_0: Tensor, cycle: int) -> InTurn:
        """What to descend for the gradient of root by the generator's weights: root, or a part at a time."""
        parts = self.schedule.micro_batches
        if parts == 1:
            return (root,)
        (d_x_0,) = torch.autograd.grad(root, x_0)

        def part(where: slice) -> Tensor:
            return (self.generator(*self.latents(cycle, where)) * d_x_0[where]).sum()

        return in_turn(part, slices(len(x_0), parts))

    def gan_term(self, x_0: Tensor, condition: Tensor | None, cycle: int) -> tuple[Tensor | float, Told]:
        """What to add to the root, and what to log; in two stages or parts <x_0, dL/dx_0>, its own graph gone."""
        if self.adversary is None:
            return 0.0, {}
        if not self.objective.two_stage and self.schedule.micro_batches == 1:
            return self.adversary.generator_turn(self, x_0, condition, cycle)
        leaf = x_0.detach().requires_grad_()
        with self.adversary.net.adapter_active():
            loss, told = self.adversary.generator_turn(self, leaf, condition, cycle)
            return ((x_0 * torch.autograd.grad(loss, leaf)[0]).sum() if told else 0.0), told
