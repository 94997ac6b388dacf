"""What the stock pipelines of diffusers draw from given noise, encoded prompts and sigmas."""

import inspect
from functools import cache
from typing import Any

import torch
from tiny_families import TINY, pipeline, rows
from torch import Tensor

from fgm.teachers.diffusers.families import FAMILIES

BATCH = {"prx": 1}  # stock PRX fails on larger guided batches: it gives its transformer two times for 2 n images
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
    z, packed = noise(name), name in ("flux_schnell", "flux_dev", "qwen_image", "chroma")
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
