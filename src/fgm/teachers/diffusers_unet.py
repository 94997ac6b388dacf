"""diffusers' UNet2DModel, from a local directory, as a velocity on any of our paths.

    DIRECTORY[/unet]         config.json, diffusion_pytorch_model.safetensors
    DIRECTORY[/scheduler]    scheduler_config.json: what the network predicts, and the noise of each step

A diffusion network F(y, k) takes y = a x_0 + s eps, a^2 + s^2 = 1, with a and s those of step k of its schedule. With
r^2 = alpha^2 + sigma^2, x_t / r is such a y at the k whose s/a is sigma/alpha; between steps log(s/a) is interpolated
linearly, and outside the schedule its nearest step is used, with the a and s of that step.

    epsilon         eps = F               x_0 = (y - s F) / a
    sample          x_0 = F               eps = (y - a F) / s
    v_prediction    x_0 = a y - s F       eps = s y + a F             (Salimans and Ho, arXiv 2202.00512)

    v = alpha' x_0 + sigma' eps

A flow-matching network, v(x_t, t) = F(x_t, 1000 t), is a velocity on the rectified path only, in the convention of
diffusers' FlowMatchEulerDiscreteScheduler: eps - x_0 at 1000 t.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fgm.flow.paths import ProbabilityPath, RectifiedPath
from fgm.networks import VelocityModel, require_shape
from fgm.networks.unet import call_unet
from fgm.utils.errors import UserError
from fgm.utils.files import read_object
from fgm.utils.pipelines import load_diffusers
from fgm.utils.pretrained import fingerprint as fingerprint_of
from fgm.utils.pretrained import has_network, locate, weight_files
from fgm.utils.validation import validated

Predicts = Literal["velocity", "epsilon", "sample", "v_prediction"]


class DiffusersVelocity(VelocityModel):
    """The velocity of images x_t (b, channels, size, size).

    Args:
        net: a UNet2DModel.
        path: of the velocity.
        predicts: the meaning of net's output.
        alpha_bar: a^2 of each step, (steps,), decreasing; None for velocity.

    Raises:
        ValueError: predicts is velocity and path is not the rectified one.
    """

    path: ProbabilityPath
    takes_prompts, null_condition = False, False

    def __init__(self, net: Any, path: ProbabilityPath, predicts: Predicts, alpha_bar: Tensor | None = None) -> None:
        super().__init__()
        if predicts == "velocity" and not isinstance(path, RectifiedPath):
            raise ValueError(
                f"path: a network that predicts velocity was trained on RectifiedPath, this run uses "
                f"{type(path).__name__}; use path=rectified"
            )
        config = net.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        self.num_classes = config.num_class_embeds or 0
        self.net, self.path, self.predicts = net.to(memory_format=torch.channels_last), path, predicts
        levels = torch.zeros(2) if alpha_bar is None else ((1 - alpha_bar.double()) / alpha_bar.double()).log() / 2
        self.register_buffer("levels", levels[levels.isfinite()].float(), persistent=False)  # log(s/a) of each step

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        if (condition is None) != (self.num_classes == 0):
            raise ValueError(
                f"this network has {self.num_classes} classes and no null class: give labels if it has any"
            )
        if self.predicts == "velocity":
            return call_unet(self.net, x_t, 1000.0 * t, condition)
        k = self.path.at(t, x_t)
        least, most = self.get_buffer("levels")[[0, -1]].to(x_t.dtype)
        level = (k.sigma / k.alpha.clamp_min(1e-12)).log().clamp(least, most)
        y, a = x_t / (k.alpha**2 + k.sigma**2).sqrt(), (1 + (2 * level).exp()).rsqrt()
        output = call_unet(self.net, y, self.step(level.flatten()), condition)
        x_0, eps = self.x_0_and_eps(y, output, a, level.exp() * a)
        return k.alpha_dot * x_0 + k.sigma_dot * eps

    def x_0_and_eps(self, y: Tensor, f: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        if self.predicts == "epsilon":
            return (y - s * f) / a, f
        return (f, (y - a * f) / s) if self.predicts == "sample" else (a * y - s * f, s * y + a * f)

    def step(self, level: Tensor) -> Tensor:
        """Return the fractional step k of each log(s/a), (b,)."""
        table = self.get_buffer("levels").to(level.dtype)
        above = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
        return above - 1 + (level - table[above - 1]) / (table[above] - table[above - 1])

    def unconditional(self, condition: Tensor) -> Tensor:
        raise ValueError("guidance needs a null class, and diffusers' UNet2DModel has none")


@validated
def pretrained(
    directory: str, path: ProbabilityPath, predicts: Predicts | None = None, fingerprint: str | None = None
) -> DiffusersVelocity:
    """Load published weights in float32.

    Args:
        directory: of a pipeline or of a UNet2DModel, or a hub id in the hub's cache.
        path: of the velocity.
        predicts: the meaning of the network's output; None takes it from scheduler_config.json.
        fingerprint: the beginning of the weights' fingerprint (fgm.utils.pretrained); None checks nothing.

    Raises:
        UserError: the network is missing, is another one, or it is unknown what it predicts.
    """
    folder = unet_directory(directory)
    actual = fingerprint_of(weight_files(folder)) if fingerprint else ""
    if fingerprint and not actual.startswith(fingerprint.lower()):
        raise UserError(f"{folder}: these are other weights: their fingerprint is {actual}, not {fingerprint}")
    return from_unet(load_diffusers("UNet2DModel", folder, torch.float32), folder, path, predicts)


@validated
def untrained(directory: str, path: ProbabilityPath, predicts: Predicts | None = None) -> DiffusersVelocity:
    """Build random weights in the shape of a directory's config.json."""
    from diffusers import UNet2DModel  # takes seconds to import

    folder = unet_directory(directory)
    net: Any = UNet2DModel.from_config(read_object(folder / "config.json", "a network's arguments"))
    return from_unet(net, folder, path, predicts)


def from_unet(net: Any, folder: Path, path: ProbabilityPath, predicts: Predicts | None) -> DiffusersVelocity:
    """Combine a UNet2DModel with the scheduler of its directory."""
    config = net.config
    if config.in_channels != config.out_channels or config.class_embed_type or not isinstance(config.sample_size, int):
        raise UserError(
            f"{folder / 'config.json'}: needs as many channels out as in, one sample_size and no class_embed_type"
        )
    files = (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json")
    scheduler = next((read_object(file, "a scheduler's settings") for file in files if file.is_file()), {})
    flow = scheduler.get("_class_name") == "FlowMatchEulerDiscreteScheduler"
    default = "epsilon" if "beta_schedule" in scheduler else None  # diffusers' default
    kind = predicts or ("velocity" if flow else scheduler.get("prediction_type", default))
    if kind not in get_args(Predicts):
        raise UserError(
            f"{folder}: no scheduler_config.json says what it predicts, {', '.join(get_args(Predicts))}; "
            "give teacher.predicts=velocity, or put the scheduler's file there"
        )
    if kind == "velocity":
        return DiffusersVelocity(net, path, kind)
    if "num_train_timesteps" not in scheduler or "beta_schedule" not in scheduler:
        raise UserError(f"{folder}: {kind} needs a noise schedule, and no scheduler_config.json there has its betas")
    from diffusers import DDPMScheduler

    noise: Any = DDPMScheduler.from_config(scheduler)
    return DiffusersVelocity(net, path, kind, noise.alphas_cumprod)


def unet_directory(model: str) -> Path:
    """Return the directory of a UNet2DModel: unet/ of a pipeline's directory, or the directory itself.

    Raises:
        UserError: there is none, or it is another network.
    """
    directory = locate(model)
    folder = directory / "unet" if (directory / "unet" / "config.json").is_file() else directory
    if not has_network(folder):
        raise UserError(
            f"{model}: no config.json and diffusion_pytorch_model.safetensors of a UNet2DModel on this machine, there "
            f"or in unet/; run hf download {model}, or give its directory"
        )
    kind = read_object(folder / "config.json", "a network's arguments").get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(f"{folder / 'config.json'}: is of a {kind}, but a UNet2DModel is needed")
    return folder
