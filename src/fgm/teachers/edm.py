"""EDM's denoisers as velocities on any of our paths, without retraining.

EDM (arXiv 2206.00364, eq. 7) predicts x_0 from y = x_0 + s eps, with s_d = 0.5 the data's standard deviation, as

    D(y; s) = s_d^2 / r^2 y + s s_d / r F(y / r, ln(s) / 4),       r^2 = s^2 + s_d^2

On a path, y = x_t / alpha has s = sigma/alpha; on the rectified one s = t / (1 - t). Inserted into velocity_from_x_0 with
R^2 = sigma^2 + s_d^2 alpha^2 this is

    v = (sigma sigma' + s_d^2 alpha alpha') / R^2 x_t - kappa s_d / R F(x_t / R, ln(sigma / alpha) / 4)

which never divides by alpha or sigma, and so holds at t = 0 and t = 1 as well; there F sees the nearest noise of its
range, 0.002 to 80. F's labels are one-hot, and zeros for the null class. EDM2 (arXiv 2312.02696) changes F only.
"""

from typing import Any, Literal

from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fgm.flow.paths import ProbabilityPath
from fgm.networks import VelocityModel, class_labels, require_shape
from fgm.teachers.edm2 import EDM2UNet
from fgm.teachers.edm_networks import DhariwalUNet, SongUNet
from fgm.utils.validation import validated

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # EDM's range of noise
NCSN = {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": (1, 3, 3, 1)
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "cifar10_ddpmpp": (SongUNet, 32, {"channel_mult": (2, 2, 2)}),
    "cifar10_ncsnpp": (SongUNet, 32, {"channel_mult": (2, 2, 2), **NCSN}),
    "ffhq64_ddpmpp": (SongUNet, 64, {"channel_mult": (1, 2, 2, 2)}),
    "ffhq64_ncsnpp": (SongUNet, 64, {"channel_mult": (1, 2, 2, 2), **NCSN}),
    "imagenet64_adm": (DhariwalUNet, 64, {}),
    "edm2_img64_xs": (EDM2UNet, 64, {"model_channels": 128}),
    "edm2_img64_s": (EDM2UNet, 64, {"model_channels": 192}),
    "edm2_img64_m": (EDM2UNet, 64, {"model_channels": 256}),
    "edm2_img64_l": (EDM2UNet, 64, {"model_channels": 320}),
    "edm2_img64_xl": (EDM2UNet, 64, {"model_channels": 384}),
}
Architecture = Literal[
    "cifar10_ddpmpp", "cifar10_ncsnpp", "ffhq64_ddpmpp", "ffhq64_ncsnpp", "imagenet64_adm",
    "edm2_img64_xs", "edm2_img64_s", "edm2_img64_m", "edm2_img64_l", "edm2_img64_xl",
]  # fmt: skip


class EDMVelocity(VelocityModel):
    """The velocity of images x_t (b, *shape).

    Args:
        model: F(x, c_noise, one-hot labels or None).
        shape: of an image.
        num_classes: see VelocityModel.
        path: of the velocity.
        data_std: s_d.
    """

    path: ProbabilityPath
    data_std: float
    takes_prompts = False

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], num_classes: int, path: ProbabilityPath, data_std: float = 0.5
    ) -> None:
        super().__init__()
        self.model, self.shape, self.num_classes, self.path, self.data_std = model, shape, num_classes, path, data_std

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        k, variance = self.path.at(t, x_t), self.data_std**2
        r = (k.sigma**2 + variance * k.alpha**2).sqrt()
        noise = (k.sigma / k.alpha.clamp_min(1e-12)).clamp(SIGMA_MIN, SIGMA_MAX).log().flatten() / 4
        labels = class_labels(self, x_t, condition)
        if labels is not None:
            labels = one_hot(labels, self.num_classes + 1)[:, :-1].to(x_t.dtype)
        f = self.model(x_t / r, noise, labels).to(x_t.dtype)
        c_skip = (k.sigma * k.sigma_dot + variance * k.alpha * k.alpha_dot) / r**2
        return c_skip * x_t - k.kappa * self.data_std / r * f


@validated
def untrained(architecture: Architecture, path: ProbabilityPath, num_classes: NonNegativeInt = 0) -> EDMVelocity:
    """Build random weights in the shape of a published checkpoint."""
    kind, size, options = ARCHITECTURES[architecture]
    model = kind(img_resolution=size, in_channels=3, out_channels=3, label_dim=num_classes, **options)
    return EDMVelocity(model, (3, size, size), num_classes, path)
