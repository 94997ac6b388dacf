"""What the stock pipelines of diffusers draw from given noise, encoded prompts and sigmas."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_families import TINY, pipeline, rows
from torch import Tensor

from fgm.teachers.diffusers.adapter import TransformerVelocity, pretrained
from fgm.teachers.diffusers.conditions import load_prompts, save_prompts
from fgm.teachers.diffusers.families import FAMILIES

BATCH = {"prx": 1}  # stock PRX fails on larger guided batches: it gives its transformer two times for 2 n images
TEXTS = ["", "a red cube", "two cats"]
PACKED = ("flux_schnell", "flux_dev", "qwen_image", "chroma", "longcat")
pipe_of = cache(pipeline)


def batch(name: str) -> Tensor:
    """The prompts of the batch; prompt 0 is the null one."""
    return torch.arange(1, 3)[: BATCH.get(name, 2)]


def noise(name: str) -> Tensor:
    return torch.randn(len(batch(name)), *TINY[name].shape, generator=torch.Generator().manual_seed(2))


def schedule(pipe: Any) -> dict[str, Any]:
    """The same few sigmas for each pipeline that takes any."""
    parameters = inspect.signature(pipe.__call__).parameters
    if pipe.scheduler.config.time_shift_type == "linear":  # CogView4: mu = 3 maps these to 1, 3/4 and 1/2
        return {"sigmas": [1.0, 0.5, 0.25], "timesteps": [1000, 500, 250], "num_inference_steps": 3}
    if "sigmas" in parameters:
        return {"sigmas": [1.0, 0.875, 0.5, 0.25], "num_inference_steps": 4}
    return {"timesteps": [1000, 875, 500, 250]} if "timesteps" in parameters else {"num_inference_steps": 4}


@cache
def stock(name: str, guided: bool, output_type: str = "latent") -> tuple[Tensor, Tensor]:
    """What the pipeline draws, latents in our layout or images in [0, 1], and its sigmas."""
    tiny, pipe, n = TINY[name], pipe_of(name), len(batch(name))
    listed, table = FAMILIES[tiny.pipeline].listed, rows(name)
    given: dict[str, Any] = {key: [row[key] for row in table[1 : n + 1]] for key in table[0]}
    if guided:
        given |= {f"negative_{key}": [table[0][key]] * n for key in table[0]}
    if "negative_prompt" in inspect.signature(pipe.__call__).parameters:
        given["negative_prompt"] = None  # SANA's default is the empty prompt
    given = {key: value if listed or value is None else torch.stack(value) for key, value in given.items()}
    z, packed = noise(name), name in PACKED
    side = TINY[name].shape[-1] * pipe_side(name)
    drawn = pipe(
        **tiny.call | (tiny.guided if guided else tiny.unguided) | schedule(pipe) | given, output_type=output_type,
        latents=pipe._pack_latents(z, *z.shape) if packed else z.clone(), height=side, width=side,
    )[0]  # fmt: skip
    if packed and output_type == "latent":
        drawn = pipe._unpack_latents(drawn, side, side, pipe.vae_scale_factor)
    if name == "qwen_image" and output_type == "latent":
        drawn = drawn.squeeze(2)
    return drawn, pipe.scheduler.sigmas


def pipe_side(name: str) -> int:
    """Pixels a side that one latent covers."""
    return {"sana": 32, "flux2_klein": 16}.get(name, 8)


def save(name: str, directory: Path) -> Path:
    """A pipeline as published, with its encoded prompts beside the parts."""
    pipe_of(name).save_pretrained(directory)
    save_prompts(rows(name), TEXTS, directory / "prompts.safetensors")
    return directory


def size(name: str) -> dict[str, int]:
    side = TINY[name].shape[-1] * pipe_side(name)
    return {"height": side, "width": side} | ({"frames": 5} if name == "wan" else {})


def load(name: str, directory: Path) -> TransformerVelocity:
    guidance = 3.5 if name == "flux_dev" else None
    prompts = load_prompts(str(directory / "prompts.safetensors"))
    return pretrained(str(directory), prompts, **size(name), embedded_guidance=guidance)
