"""diffusers' flow transformers as velocities on the rectified path.

    v(x_t, t, condition) = sign unpack(F(pack(x_t), time(t), condition, ...))

with the sign, layout, time and arguments of the family (families.py). A condition is either a mapping with the names of the
pipeline's arguments, whose tensors are (n, ...) or lists of n, and with the null condition as negative_<name>; or prompts'
indices (n,) int64 into `prompts`, of which 0 is the null prompt. Training takes indices.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fgm.flow.paths import RectifiedPath
from fgm.networks import VelocityModel, require_shape
from fgm.teachers.diffusers.conditions import NEGATIVE, Condition, EncodedPrompts, batched
from fgm.teachers.diffusers.families import Family, known_family
from fgm.teachers.diffusers.latents import pixels_per_code
from fgm.utils.errors import UserError
from fgm.utils.files import read_object
from fgm.utils.pipelines import load_diffusers
from fgm.utils.pretrained import has_network, locate
from fgm.utils.validation import validated


class TransformerVelocity(VelocityModel):
    """The velocity of latents x_t (b, *shape).

    Args:
        transformer: a diffusers network of the family.
        family: how it is called.
        shape: of one x_t: channels, frames of a video, rows, columns.
        prompts: encodings by index; None if conditions are always given as mappings.
        embedded_guidance: the guidance scale that is an input of a transformer with guidance_embeds.
        shift: of the scheduler at this size, see families.py.
        pixels_per_latent: along a side.
        checkpointing: recompute each block in the backward pass.

    Raises:
        UserError: the transformer needs an embedded guidance and has none, or takes none; prompts lack a part.
    """

    takes_prompts, path = True, RectifiedPath()

    def __init__(
        self, transformer: Any, family: Family, shape: tuple[int, ...], prompts: EncodedPrompts | None = None,
        embedded_guidance: float | None = None, shift: float = 1.0, pixels_per_latent: int = 8,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        takes = "guidance" in inspect.signature(transformer.forward).parameters
        embeds = takes and bool(transformer.config.get("guidance_embeds"))
        if embeds != (embedded_guidance is not None):
            wrong = "has the guidance as an input: give it" if embeds else "has no such input: leave it out"
            raise UserError(f"embedded_guidance = {embedded_guidance}: {type(transformer).__name__} here {wrong}")
        if prompts is not None and (missing := sorted(family.arguments.keys() - prompts.names)):
            raise UserError(f"{family.pipeline}: the encoded prompts lack {', '.join(missing)}")
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        self.transformer, self.family, self.prompts = transformer, family, prompts
        self.shape, self.num_classes, self.embedded_guidance = shape, 0, embedded_guidance
        self.shift, self.pixels_per_latent = shift, pixels_per_latent

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        require_shape(self, x_t)
        if condition is None:
            raise ValueError("this network needs a condition for each latent: the null prompt is 0")
        family, dtype = self.family, self.transformer.dtype
        arguments = self.arguments(condition, dtype)
        arguments |= family.more(self, x_t, arguments)
        arguments[family.time_argument] = family.time(self, t.float())
        if self.embedded_guidance is not None:
            arguments["guidance"] = t.new_full((len(x_t),), self.embedded_guidance, dtype=torch.float32)
        output = self.transformer(family.layout.pack(x_t.to(dtype)), **arguments, return_dict=False)[0]
        return family.sign * family.layout.unpack(output, x_t).to(x_t.dtype)

    def arguments(self, condition: Tensor | Condition, dtype: torch.dtype) -> dict[str, Any]:
        """Return the condition as arguments of the transformer, floating-point ones in its dtype."""
        parts = condition if isinstance(condition, Mapping) else self.encodings(condition)
        masked, made = any("mask" in name for name in self.family.arguments), {}
        for name, argument in self.family.arguments.items():
            if self.family.listed:
                made[argument] = [part.to(dtype) for part in parts[name]]
            else:
                value = batched(name, parts[name], masked)
                made[argument] = value.to(dtype) if value.is_floating_point() else value
        return made

    def encodings(self, indices: Tensor) -> Condition:
        if self.prompts is None:
            raise ValueError("this network has no encoded prompts: give them, or give conditions as mappings")
        return self.prompts(indices)

    def unconditional(self, condition: Any) -> Any:
        if isinstance(condition, Mapping):
            return {name: condition[NEGATIVE + name] for name in self.family.arguments}
        return torch.zeros_like(condition)


@dataclass(frozen=True)
class Geometry:
    """A published pipeline at one size, from its configurations alone.

    Attributes:
        folder: its diffusers directory.
        shape: of one x_t: channels, frames of a video, rows, columns.
        shift: of its scheduler, see families.py.
        pixels_per_latent: along a side.
        autoencoder: diffusers class.
    """

    folder: Path
    family: Family
    shape: tuple[int, ...]
    shift: float
    pixels_per_latent: int
    autoencoder: str


@validated
def geometry(model: str, height: PositiveInt, width: PositiveInt, frames: PositiveInt | None = None) -> Geometry:
    """Return how a published pipeline is called at a size in pixels.

    Args:
        model: a diffusers directory, or a hub id whose files are in the hub's cache.
        frames: of a video; None for images.

    Raises:
        UserError: a part is missing, the family is unknown, or the size does not fit.
    """
    folder = locate(model)
    if missing := [f"{part}/" for part in ("transformer", "vae") if not has_network(folder / part)]:
        raise UserError(
            f"{model}: no whole {' and '.join(missing)} on this machine; run hf download {model}, or give network.model="
            "<its diffusers directory>"
        )
    index, transformer, vae, scheduler = (
        read_object(folder / file, "a part of a published pipeline")
        for file in (
            "model_index.json",
            "transformer/config.json",
            "vae/config.json",
            "scheduler/scheduler_config.json",
        )
    )
    family = known_family(str(index.get("_class_name")))
    pixels, patch = pixels_per_code(vae) * (2 if "batch_norm_eps" in vae else 1), family.layout.patch
    for name, side in (("height", height), ("width", width)):
        if side % (pixels * patch):
            raise UserError(f"{name} = {side}: give a multiple of {pixels * patch}, the side of a token of {model}")
    rows, columns, channels = height // pixels, width // pixels, family.layout.channels(transformer["in_channels"])
    length = () if frames is None else ((frames - 1) // vae.get("scale_factor_temporal", 4) + 1,)
    shift = family.shift(scheduler, rows * columns // patch**2, channels)
    return Geometry(folder, family, (channels, *length, rows, columns), shift, pixels, vae["_class_name"])


@validated
def pretrained(
    model: str, prompts: EncodedPrompts | None, height: PositiveInt, width: PositiveInt,
    frames: PositiveInt | None = None, embedded_guidance: PositiveFloat | None = None, checkpointing: bool = False,
    random_init: bool = False,
) -> TransformerVelocity:  # fmt: skip
    """Load published weights of any known family in float32.

    Args:
        model, height, width, frames: see geometry.
        prompts, embedded_guidance, checkpointing: see TransformerVelocity.
        random_init: random weights in the model's shape.

    Raises:
        UserError: see geometry and TransformerVelocity; or the weights are incomplete.
    """
    at = geometry(model, height, width, frames)
    if random_init:
        import diffusers  # takes seconds to import

        network: Any = getattr(diffusers, at.family.transformer)
        transformer = network.from_config(network.load_config(at.folder / "transformer"))
    else:
        transformer = load_diffusers(at.family.transformer, at.folder / "transformer", torch.float32)
    return TransformerVelocity(
        transformer, at.family, at.shape, prompts, embedded_guidance, at.shift, at.pixels_per_latent, checkpointing
    )
