"""Real images in a distillation, without a discriminator: RealUID's two coefficients (arXiv 2509.22459, section 3).

    online turn       a |v(x_t) - (b/a) c|^2 of generated x_0,
                      plus (1 - a) |v(x_t) - ((1 - b)/(1 - a)) c|^2 of as many real ones
    generator turn    w(t) (lambda_1 a |u - v|^2 + 2 <u - v, a v - b c>)     generated x_0 alone

losses.py says what this minimises; it rests at the data if u is their velocity, which a guided teacher's is not.
a = b = 1 is FGM, and then no real image is drawn. Its authors choose a, b in [0.85, 1] with b/a of 0.98 or 1.02; the
value of online_loss then has another zero than FGM's.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fgm.data import Data
from fgm.flow import losses
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.training.method import Method
from fgm.training.setting import Setting
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

Share = Annotated[float, Field(gt=0, le=1)]


class RealImages:
    """Batches of real x_0 that fit what a generator makes.

    Args:
        setting: of the distillation; its data are the real images if none are given.
        data: real images or latents, see fgm.data.

    Attributes:
        told: whether they come with conditions.

    Raises:
        UserError: their shape, or that of their conditions, is not the generator's.
    """

    def __init__(self, setting: Setting, data: Data | None) -> None:
        self.data, own = data or setting.data, setting.data
        if tuple(self.data.shape) != tuple(own.shape):
            raise UserError(
                f"real images are of shape {tuple(self.data.shape)}, and generated ones of {tuple(own.shape)}"
            )
        noise = keyed_generator("conditions", index=0)
        told, wanted = self.data.draw(1, noise)[1], own.conditions(1, noise)
        self.told, self.fits = told is not None, (told is None) == (wanted is None)
        if told is not None and wanted is not None and told.shape != wanted.shape:
            shapes = f"{tuple(told.shape[1:])}, and generated ones of {tuple(wanted.shape[1:])}"
            raise UserError(f"real images have conditions of shape {shapes}")


@validated
class RealData:
    """The data term of a distillation.

    Args:
        setting: of the distillation.
        online: its online network.
        time: density of t in its online turns.
        a, b: shares of generated images in the square and in the product.
        data: real images; setting.data if None.

    Raises:
        UserError: the real images do not fit the generator's shape or conditions.
    """

    def __init__(
        self,
        setting: Setting,
        online: VelocityModel,
        time: TimestepDensity,
        a: Share,
        b: Share,
        data: Data | None = None,
    ) -> None:
        self.setting, self.online, self.time, self.a, self.b = setting, online, time, a, b
        self.images = None if self.is_off else RealImages(setting, data)
        if self.images and not self.images.fits:
            has = "have conditions" if self.images.told else "tell no condition"
            raise UserError(f"the real images {has}, and the online network is not trained so")

    @property
    def is_off(self) -> bool:
        return self.a == self.b == 1

    def drawn(self, method: Method, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
        """x_t, c, t and conditions of as many real images as the batch has, for an online turn; None if it is off."""
        if self.images is None:
            return None
        noise = method.noise("real", index)
        x_0, condition = method.draw(self.images.data, noise)
        return *self.setting.noisy(x_0, self.time, noise), condition

    def online_loss(
        self,
        v: Tensor,
        c: Tensor,
        x_t: Tensor | None = None,
        real_c: Tensor | None = None,
        t: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The mean over generated images, of which v and c are, and real ones at x_t, where they are given."""
        loss = losses.realuid_matching(v, c, self.a, self.b).mean()
        if x_t is None or real_c is None or t is None:
            return loss
        real_v = self.online(x_t, t, condition).to(x_t.dtype)
        return loss + losses.realuid_matching(real_v, real_c, 1 - self.a, 1 - self.b).mean()

    def generator_loss(self, u: Tensor, v: Tensor, c: Tensor, lambda_1: float, detach: bool) -> Tensor:
        """In place of losses.fgm, (batch,)."""
        return losses.realuid(u, v, c, self.a, self.b, lambda_1, detach)
