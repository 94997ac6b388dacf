"""Flow Generator Matching: distil a flow-matching teacher into a few-step generator (arXiv 2410.19310, algorithm 1).

One training_step:

    x_0 = g(z, condition)                        drawn once, shared by all updates
    online update, K times   |v - c|^2           x_0 detached; trains the online velocity v
    discriminator update     (optional)          trains the discriminator's heads, see discriminator.py
    generator update         w(t) (lambda_1 |u - v|^2 + 2 <u - v, v - c>), through x_t into u, v and c; trains g
    ema                      follows the generator, and the online network may be pulled after it (ida_decay)

u is the frozen teacher, c = alpha'_t x_0 + sigma'_t eps the conditional velocity; t = 0 is data, t = 1 is noise. t, eps and
x_t are float32. The generator update is cut at x_0: first d = dL/dx_0 through the two velocity networks, whose graphs are
then freed, then <g(z), d> through the generator. A generator of k steps is trained at one of them, drawn anew each time
(arXiv 2509.25127). To change the loss or add a term, override `generator_loss`, which sees every tensor (docs/extending.md).

Departures from the paper: x_0 is shared by both updates, where the paper draws two batches; learning rates decay.

Logged, as means over the batch and dims: `mismatch` |u - v|^2 is the measure of progress; `fgm_loss` is not, since it is
near zero and often negative by construction (losses.py); `online_loss` |v - c|^2 of the last online update; `sample_mean`,
`sample_std` of x_0; `*_grad_norm` before clipping; `skipped` updates, whose gradient was not finite; `images_seen`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from fgm.data import Data
from fgm.evaluation.sampling import Sampler, generator_sampler, ode_sampler, start_sampler
from fgm.flow import losses
from fgm.flow.paths import ProbabilityPath
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.networks.generator import FewStepGenerator, InputScale
from fgm.networks.guidance import Guidance, apply_guidance, unwrap_guidance
from fgm.networks.lora import LoRA, base_model, trainable_module
from fgm.training.config import TrainingConfig
from fgm.training.discriminator import GANTerm
from fgm.training.ema import align, frozen_copy
from fgm.training.initialize import Init, MakeNetwork, initialize_pair, regress_on_ode
from fgm.training.memory import VelocityAt, cached_prompts, two_stage
from fgm.training.module import Loss, Scalars, TrainingModule
from fgm.training.optim import MakeOptimizer, with_lr_ratio
from fgm.training.real_images import RealUID
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated


@validated
class Distillation(TrainingModule):
    """Train a generator and an online network against a frozen teacher.

    Args:
        teacher: the velocity u, guided if it is to be; it is in no checkpoint.
        data: shape, conditions and std of the samples; real images only for a discriminator or RealUID.
        path, times: where x_t comes from.  online_times: density of t in online updates, if it differs.
        optimizer, online_optimizer: from a network to its optimizer; the online one, the generator's if None, has
            online_lr_ratio times its learning rate.
        network: makes a fresh velocity network, for inits other than "teacher".  ode_pairs: see initialize.py.
        t_star, c_in, steps: how the generator reads its network, see FewStepGenerator.
        lambda_1, detach, weighting, normalizer: the objective, see losses.py.  online_steps: K.  ida_decay: see align in ema.py.
        guidance: which velocities the teacher's guidance scale applies to, see guidance.py.
        adapters: train adapters on the teacher's weights instead of whole networks, see lora.py; implies low_memory.
        low_memory: hold one network's graph at a time, see memory.py.  teacher_dtype: see mixed_precision.py.
        discriminator, real_uid: the GAN term and RealUID, which see real images.
        teacher_steps: Euler steps of the teacher shown beside the generator.
    """

    exported = "generator"
    updated = ("generator", "online", "discriminator")

    def __init__(
        self, teacher: VelocityModel, data: Data, path: ProbabilityPath, times: TimestepDensity,
        optimizer: MakeOptimizer, config: TrainingConfig, network: MakeNetwork | None = None, seed: int = 0, *,
        t_star: Annotated[float, Field(gt=0, le=1)], c_in: InputScale = "t_star", steps: PositiveInt = 1,
        lambda_1: float = 1.0, detach: losses.Detach = False, ida_decay: Annotated[float, Field(gt=0, le=1)] = 1.0,
        weighting: losses.Weighting = losses.velocity_weight, normalizer: losses.Weighting = losses.no_normalizer,
        online_steps: PositiveInt = 1, online_times: TimestepDensity | None = None,
        online_optimizer: MakeOptimizer | None = None, online_lr_ratio: PositiveFloat = 1.0,
        generator_init: Init = "teacher", online_init: Init = "teacher", ode_pairs: NonNegativeInt = 0,
        guidance: Guidance = "teacher", adapters: LoRA | None = None, low_memory: bool = False,
        discriminator: Callable[..., GANTerm] | None = None, real_uid: RealUID | None = None,
        teacher_dtype: Literal["float32", "bfloat16"] = "float32", teacher_steps: PositiveInt = 50,
    ) -> None:  # fmt: skip
        super().__init__(config, data, path, times, seed)
        if teacher is None:
            raise ValueError("a distillation needs a teacher: choose teacher=run, file or exact")
        if teacher_dtype == "bfloat16" and adapters:
            raise ValueError("teacher_dtype is for whole networks: adapters.base is the dtype of what adapters share")
        self.lambda_1, self.detach, self.weighting, self.normalizer = lambda_1, detach, weighting, normalizer
        self.online_steps, self.online_times, self.teacher_steps = online_steps, online_times or times, teacher_steps
        self.make_optimizer, self.regressed = optimizer, ode_pairs > 0
        self.make_online_optimizer = with_lr_ratio(online_optimizer or optimizer, online_lr_ratio)
        self.low_memory, self.guidance, self.ida_decay = low_memory or adapters is not None, guidance, ida_decay
        reading = partial(FewStepGenerator, path=path, t_star=t_star, c_in=c_in, data_std=data.std, steps=steps)
        net, self.online = initialize_pair(self, teacher, network, generator_init, online_init, adapters)
        self.generator = reading(net)
        regress_on_ode(self, teacher, self.generator, ode_pairs)
        shared = generator_init == "teacher" and adapters is None and not self.regressed
        start = reading(unwrap_guidance(teacher) if shared else frozen_copy(net)).eval()
        self.frozen = (teacher, start)  # neither registered nor in a checkpoint
        self.average(self.generator)
        self.velocities = apply_guidance(guidance, teacher, self.online)
        self.real_uid = real_uid if real_uid and real_uid.enabled(data) else None
        self.gan = discriminator(self, teacher, self.online) if discriminator else None
        if teacher_dtype == "bfloat16":
            self.halve(unwrap_guidance(teacher))

    def forward(self, z: Tensor, condition: Tensor | None = None, eps: Tensor | None = None) -> Tensor:
        return self.ema(z, condition, eps)

    def training_step(self, batch: Tensor) -> None:
        """Take one step, see the module docstring. What it draws depends on seed, rank and step only."""
        step, (z, condition, eps) = int(self.step), self.latents(int(self.step))
        with cached_prompts(self.networks(), None if self.gan or self.real_uid else condition):
            with self.toggled_optimizer(self.optimizer("generator")), torch.set_grad_enabled(self.whole_batch):
                x_0 = torch.cat([self.generator(*part) for part in self.parts(z, condition, eps)])
            scalars: Scalars = {}
            for k in range(self.online_steps):
                scalars = self.online_update(x_0.detach(), condition, step * self.online_steps + k)
            if self.gan:
                scalars |= self.gan.update(x_0.detach(), condition, step)
            d_x_0, logged = self.generator_gradient(x_0.detach(), condition, step)
            with self.generator.adapter_active():
                norm = self.update("generator", self.through_generator(x_0, d_x_0, z, condition, eps))
        align(self.online, self.generator.net, self.ida_decay)
        self.update_averages(self.generator)
        scalars |= logged | {"generator_grad_norm": norm}
        self.finish_step(scalars | {"sample_mean": x_0.detach().mean(), "sample_std": x_0.detach().std()})

    def generator_loss(
        self, u: Tensor, v: Tensor, c: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, condition: Any
    ) -> Tensor:
        """Return w(t) n(x_0) (lambda_1 L_1 + L_2) per sample, (batch,); override it to change the loss or add a term.

        u, v, c, x_0 and x_t are (batch, *dims) and differentiable; t is (batch,). The weights of u and v are frozen.
        """
        with torch.no_grad():
            teacher_x_0, online_x_0 = (self.path.x_0_from_velocity(x_t, velocity, t) for velocity in (u, v))
            weight = self.normalizer(x_0, teacher_x_0, online_x_0) * self.weighting(self.path, t)
        if self.real_uid:
            return weight * losses.realuid(u, v, c, self.real_uid.a, self.real_uid.b, self.lambda_1, self.detach)
        return weight * losses.fgm(u, v, c, self.lambda_1, self.detach)

    def online_loss(self, x_t: Tensor, c: Tensor, t: Tensor, condition: Tensor | None, *real: Any) -> Loss:
        """Return the mean of |v - c|^2 on generated samples; with RealUID its two means, see real_images.py."""
        net, uid = self.velocities[1], self.real_uid
        v = VelocityAt(net, t, condition)(x_t)
        loss = uid.online_loss(v, c, net, *real) if uid else losses.flow_matching(v, c).mean()
        return loss, {"online_loss": loss}

    def online_update(self, x_0: Tensor, condition: Tensor | None, index: int) -> Scalars:
        x_t, c, t = self.noised(x_0, self.online_times, self.rng("online", index))
        real = self.real_uid.batch(self, index) if self.real_uid else ()
        scalars: Scalars = {}
        with self.velocities[1].adapter_active():
            norm = self.update("online", self.in_parts(self.online_loss, scalars, x_t, c, t, condition, *real))
        return scalars | {"online_grad_norm": norm}

    def generator_gradient(self, x_0: Tensor, condition: Tensor | None, step: int) -> tuple[Tensor, Scalars]:
        """Return dL/dx_0 of the generator's mean loss, (batch, *dims), and what to log."""
        x_0, scalars = x_0.requires_grad_(), {}
        t, eps = self.times_and_noise(x_0, self.times, self.rng("generator", step))
        with self.toggled_optimizer(self.optimizer("generator")):
            for loss in self.in_parts(self.mean_generator_loss, scalars, x_0, condition, t, eps):
                loss.backward(inputs=[x_0])
            if self.gan:
                self.gan.add_generator_gradient(x_0, condition, step, scalars)
        return x_0.grad, scalars  # type: ignore[return-value]

    def mean_generator_loss(self, x_0: Tensor, condition: Tensor | None, t: Tensor, eps: Tensor) -> Loss:
        """Return the mean generator loss, or with low_memory a surrogate of the same gradient, and what to log."""
        x_t, c = self.path.interpolate(x_0, eps, t)
        teacher, online = (VelocityAt(net, t, condition) for net in self.velocities)
        loss = partial(self.generator_loss, t=t, condition=condition)
        if self.low_memory:
            u, v, value, surrogate = two_stage(teacher, online, loss, c, x_0, x_t)
        else:
            u, v = teacher(x_t), online(x_t)
            value = surrogate = loss(u, v, c, x_0, x_t).mean()
        return surrogate, {"mismatch": losses.squared_norm((u - v).detach()).mean(), "fgm_loss": value}

    def latents(self, step: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return z, conditions, and the noise of a few-step generator, (batch, steps - 1 or fewer, *dims)."""
        rng, shape = self.rng("latent", step), (self.config.batch_size, *self.data.shape)
        z, condition, eps = self.normal(shape, rng), self.data.conditions(shape[0], rng), None
        if self.generator.renoisings:
            count = torch.randint(self.generator.nfe, (), generator=keyed_generator(self.seed, "step", index=step))
            eps = self.normal((int(count), *shape), self.rng("renoising", step)).transpose(0, 1)
        return z, condition, eps

    def through_generator(self, x_0: Tensor, d_x_0: Tensor, *latents: Tensor | None) -> Iterator[Tensor]:
        """Yield <g(z), dL/dx_0>, whose gradient by g's weights is the loss's; micro-batches build x_0's graph again."""
        if self.whole_batch:
            yield (x_0 * d_x_0).sum()
        else:
            for d, *part in self.parts(d_x_0, *latents):
                yield (self.generator(*part) * d).sum()

    def configure_optimizers(self):
        generator = self.scheduled(self.make_optimizer, self.generator.net)
        online = self.scheduled(self.make_online_optimizer, self.online, self.online_steps)
        return [generator, online, *([self.gan.optimizer_and_schedule()] if self.gan else [])]

    def samplers(self) -> list[Sampler]:
        """Return what is measured and shown: ema, raw weights, further averages, start, and the teacher's ODE."""
        ema, *further = (generator_sampler(net, name) for name, net in self.averages.items())
        raw, ode = generator_sampler(self.generator, "raw"), ode_sampler(self.teacher, self.path, self.teacher_steps)
        return [ema, raw, *further, start_sampler(self.start, self.regressed), ode]

    def networks(self) -> list[VelocityModel]:
        nets: list[Any] = [g.net for g in (self.generator, self.start, *self.averages.values())]
        nets += [self.online, unwrap_guidance(self.teacher)]
        return list(dict.fromkeys(base_model(net) for net in nets if any(True for _ in net.parameters())))

    def result(self) -> nn.Module:
        return trainable_module(self.ema.net)
