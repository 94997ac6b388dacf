"""diffusers' UNet2DModel, from a directory, as a velocity: whatever it predicts, on any of our paths.

    DIRECTORY[/unet]         config.json, diffusion_pytorch_model.safetensors
    DIRECTORY[/scheduler]    scheduler_config.json: what it predicts, and at which noise

A diffusion network F(y, k) reads y = a x_0 + s eps, a^2 + s^2 = 1, with a and s those of step k of its schedule. So
does x_t / r, r^2 = alpha^2 + sigma^2, at the k whose s/a is sigma/alpha; between steps the logarithm of s/a is linear.

    epsilon         eps = F               x_0 = (y - s F) / a
    sample          x_0 = F               eps = (y - a F) / s
    v_prediction    x_0 = a y - s F       eps = s y + a F             (Salimans and Ho, arXiv 2202.00512)

    v = alpha' x_0 + sigma' eps

Beyond the schedule's ends its nearest step is asked, with that step's a and s. A network of flow matching,

    velocity        v(x_t, t) = F(x_t, 1000 t)

is one of the rectified path alone, in diffusers' convention: eps - x_0 at 1000 t, as FlowMatchEulerDiscreteScheduler.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fgm.flow.paths import ProbabilityPath, RectifiedPath
from fgm.networks import VelocityModel, require_shape
from fgm.networks.sd3 import load_diffusers
from fgm.networks.unet import call_unet
from fgm.utils.errors import UserError
from fgm.utils.files import read_object
from fgm.utils.fingerprints import require_fingerprint
from fgm.utils.pretrained import scheduler_config, unet_directory
from fgm.utils.validation import validated

Predicts = Literal["velocity", "epsilon", "sample", "v_prediction"]
FLOW = "FlowMatchEulerDiscreteScheduler"
TIMES = 1000.0


class DiffusersVelocity(VelocityModel):
    """v(x_t, t, condition) for images x_t (b, channels, size, size).

    Args:
        net: a UNet2DModel.
        path: of the velocity.
        predicts: what net puts out.
        alpha_bar: a^2 of each step, (steps,), falling; nothing for velocity.
    """

    def __init__(self, net: Any, path: ProbabilityPath, predicts: Predicts, alpha_bar: Tensor | None = None) -> None:
        super().__init__()
        if predicts == "velocity" and not isinstance(path, RectifiedPath):
            raise ValueError("a network that predicts velocity is a flow of path=rectified alone")
        config = net.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        self.num_classes = config.num_class_embeds or 0
        self.net, self.path, self.predicts = net.to(memory_format=torch.channels_last), path, predicts
        levels = torch.zeros(2) if alpha_bar is None else ((1 - alpha_bar.double()) / alpha_bar.double()).log() / 2
        self.register_buffer("levels", levels[levels.isfinite()].float(), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        if (condition is None) != (self.num_classes == 0):
            raise ValueError(
                f"this network has {self.num_classes} classes and no null class: give labels if it has any"
            )
        if self.predicts == "velocity":
            return call_unet(self.net, x_t, TIMES * t, condition)
        k = self.path.at(t, x_t)
        least, most = self.get_buffer("levels")[[0, -1]].to(x_t.dtype)
        level = (k.sigma / k.alpha.clamp_min(1e-12)).log().clamp(least, most)
        y, a, s = x_t / (k.alpha**2 + k.sigma**2).sqrt(), (1 + (2 * level).exp()).rsqrt(), level.exp()
        x_0, eps = self.split(y, call_unet(self.net, y, self.step(level.flatten()), condition), a, s * a)
        return k.alpha_dot * x_0 + k.sigma_dot * eps

    def split(self, y: Tensor, f: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 and eps."""
        if self.predicts == "epsilon":
            return (y - s * f) / a, f
        return (f, (y - a * f) / s) if self.predicts == "sample" else (a * y - s * f, s * y + a * f)

    def step(self, level: Tensor) -> Tensor:
        """k, not whole, of log(s/a) within the schedule, (b,)."""
        table = self.get_buffer("levels").to(level.dtype)
        above = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
        return above - 1 + (level - table[above - 1]) / (table[above] - table[above - 1])

    def unconditional(self, condition: Tensor) -> Tensor:
        raise ValueError("guidance needs a null class, and diffusers' UNet2DModel has none")


@validated
def pretrained(
    directory: str, path: ProbabilityPath, predicts: Predicts | None = None, fingerprint: str | None = None
) -> DiffusersVelocity:
    """
    Args:
        directory: of a pipeline or of a UNet2DModel, or the hub id of one in the hub's cache.
        path: of the velocity.
        predicts: what it puts out; as its scheduler_config.json tells if None.
        fingerprint: of its weights, or its beginning, see fgm.utils.fingerprints; unchecked if None.

    Raises:
        UserError: there is no such directory, it holds another network, or what it predicts is not known.
    """
    folder = unet_directory(directory)
    require_fingerprint(folder, fingerprint)
    return velocity_of(load_diffusers("UNet2DModel", folder, torch.float32), folder, path, predicts)


@validated
def untrained(directory: str, path: ProbabilityPath, predicts: Predicts | None = None) -> DiffusersVelocity:
    """Fresh weights in the shape that a directory's config.json tells."""
    from diffusers import UNet2DModel

    folder = unet_directory(directory)
    net: Any = UNet2DModel.from_config(read_object(folder / "config.json", "a network's arguments"))
    return velocity_of(net, folder, path, predicts)


def velocity_of(net: Any, folder: Path, path: ProbabilityPath, predicts: Predicts | None) -> DiffusersVelocity:
    told = net.config
    if told.in_channels != told.out_channels or told.class_embed_type or not isinstance(told.sample_size, int):
        raise UserError(
            f"{folder / 'config.json'}: needs as many channels out as in, a whole sample_size and no class_embed_type"
        )
    config = scheduler_config(folder)
    unsaid = "epsilon" if "beta_schedule" in config else None  # diffusers' default
    kind = predicts or ("velocity" if config.get("_class_name") == FLOW else config.get("prediction_type", unsaid))
    if kind not in get_args(Predicts):
        raise UserError(
            f"{folder}: no scheduler_config.json beside it tells what it predicts, {', '.join(get_args(Predicts))}; "
            "give teacher.predicts=velocity, or put the scheduler's file there"
        )
    return DiffusersVelocity(net, path, kind, None if kind == "velocity" else alpha_bar(config, folder))


def alpha_bar(config: dict[str, Any], folder: Path) -> Tensor:
    """a^2 of each step of the schedule that a scheduler_config.json tells."""
    if "num_train_timesteps" not in config or "beta_schedule" not in config:
        raise UserError(
            f"{folder}: what it predicts needs a schedule, and no scheduler_config.json there tells its betas"
        )
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler.from_config(config)
    return scheduler.alphas_cumprod
