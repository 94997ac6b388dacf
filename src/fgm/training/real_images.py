"""Real images in a distillation: batches that fit the generator's, the teacher's samples in their place, and RealUID.

RealUID (arXiv 2509.22459, section 3) uses real images without a discriminator:

    online update       a |v(x_t) - (b/a) c|^2 on generated x_0,
                        plus (1 - a) |v(x_t) - ((1 - b)/(1 - a)) c|^2 on as many real ones
    generator update    w(t) (lambda_1 a |u - v|^2 + 2 <u - v, a v - b c>) on generated x_0 only

losses.py shows what this minimises. It rests at the data if u is their velocity, which a guided teacher's is not.
a = b = 1 is FGM, and then no real image is drawn. The authors choose a, b in [0.85, 1] with b/a of 0.98 or 1.02; the value
of online_loss then has another zero than FGM's.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, Tensor

from fgm.data import Data
from fgm.evaluation.sampling import conditioning, draw_samples, ode_sampler
from fgm.flow import losses
from fgm.networks import VelocityModel
from fgm.training.memory import VelocityAt
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated


class RealImages:
    """Real x_0 of the shape that a generator makes.

    Args:
        data: real images or latents.
        generated: shape and conditions of the generator's samples.

    Attributes:
        have_conditions: whether they come with conditions.
        alike: whether both or neither have conditions.

    Raises:
        UserError: the shapes of the samples or of their conditions differ.
    """

    def __init__(self, data: Data, generated: Data) -> None:
        self.data = data
        if tuple(data.shape) != tuple(generated.shape):
            raise UserError(
                f"real images are of shape {tuple(data.shape)}, and generated ones of {tuple(generated.shape)}"
            )
        rng = keyed_generator("conditions", index=0)
        real, wanted = data.draw(1, rng)[1], generated.conditions(1, rng)
        self.have_conditions, self.alike = real is not None, (real is None) == (wanted is None)
        if real is not None and wanted is not None and real.shape != wanted.shape:
            shapes = f"{tuple(real.shape[1:])}, and generated ones of {tuple(wanted.shape[1:])}"
            raise UserError(f"real images have conditions of shape {shapes}")


class TeacherImages:
    """Samples of the teacher's ODE in place of real images: the training stays without data.

    A discriminator then teaches what the teacher draws in many steps, not what it lacks, as Z-Image Turbo's does. The samples
    are drawn when the first batch is, a pure function of the seed, and are the same on every rank; a resumed run draws
    them again.

    Args:
        module: the distillation, for its teacher, path, teacher_steps and seed.
        n: number of samples; a batch picks from them.
    """

    have_conditions = True  # if generated ones have

    def __init__(self, module: Any, n: int) -> None:
        self.module, self.n, self.data = module, n, self
        self.pool: tuple[Tensor, Tensor | None] | None = None

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Return n of the samples, with repetition, and their conditions, on the CPU."""
        module = self.module
        if self.pool is None:
            ode = ode_sampler(module.teacher, module.path, module.teacher_steps)
            conditions = conditioning(module.data, None, module.seed).conditions
            batch = module.config.batch_size
            self.pool = draw_samples(ode, module.seed, self.n, module.data.shape, conditions, module.device, batch)
        x_0, condition = self.pool
        chosen = torch.randint(self.n, (n,), generator=generator, device=generator.device).cpu()
        return x_0[chosen], None if condition is None else condition[chosen]


@validated
@dataclass(frozen=True)
class RealUID:
    """
    Args:
        a, b: shares of generated images in the square and in the product.
        data: real images; the distillation's own if None.
    """

    a: Annotated[float, Field(gt=0, le=1)] = 0.98
    b: Annotated[float, Field(gt=0, le=1)] = 0.96
    data: Data | None = None

    def enabled(self, generated: Data) -> bool:
        """Return whether real images are used, which must then fit the generated ones.

        Raises:
            UserError: they do not.
        """
        if self.a == self.b == 1:
            return False
        images = RealImages(self.data or generated, generated)
        if not images.alike:
            has = "have conditions" if images.have_conditions else "have no condition"
            raise UserError(f"the real images {has}, and the online network is not trained so")
        return True

    def batch(self, module: Any, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return x_t, c, t and conditions of as many real images as the batch has, for one online update."""
        rng = module.rng("real", index)
        x_0, condition = module.draw_data(self.data or module.data, rng)
        return *module.noised(x_0, module.online_times, rng), condition

    def online_loss(
        self,
        v: Tensor,
        c: Tensor,
        online: VelocityModel,
        x_t: Tensor,
        real_c: Tensor,
        t: Tensor,
        condition: Tensor | None,
    ) -> Tensor:
        """Return the mean over generated samples, whose v and c are given, plus that over real ones at x_t."""
        real_v = VelocityAt(online, t, condition)(x_t)
        generated = losses.realuid_matching(v, c, self.a, self.b).mean()
        return generated + losses.realuid_matching(real_v, real_c, 1 - self.a, 1 - self.b).mean()
