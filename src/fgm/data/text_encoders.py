"""Encode prompts with the text encoders of diffusers' StableDiffusion3Pipeline, and write the cache of encodings.py."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fgm.data.encodings import CLIP_LENGTH, ENCODERS, INDEX, CacheIndex, PromptCache
from fgm.utils.errors import UserError, first_line
from fgm.utils.files import replacing, write_bytes
from fgm.utils.pretrained import load_transformers, locate

CLIPS, T5 = ENCODERS[:2], ENCODERS[2]
CLASSES = dict.fromkeys(CLIPS, "CLIPTextModelWithProjection") | {T5: "T5EncoderModel"}


def encode_prompts(
    cache: PromptCache, index: CacheIndex, device: str, batch: int, progress: Callable[[int], Any]
) -> CacheIndex:
    """Write the missing shards and then the index, which now has the widths and the number of truncated prompts.

    Args:
        cache, index: the cache and its plan.
        device: that the encoders run on.
        batch: prompts at once.
        progress: called with the number of prompts that are done.
    """
    encoders = TextEncoders(locate(cache.model), list(index.encoders), index, device)
    Path(cache.directory).mkdir(parents=True, exist_ok=True)
    for number in range(index.shards):
        prompts = index.prompts[number * index.shard_size : (number + 1) * index.shard_size]
        if not cache.has_shard(number, index.digest):
            parts = [encoders(prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
            write_shard(cache.shard(number), parts, index.digest)
        progress(number * index.shard_size + len(prompts))
    index = replace(index, truncated=encoders.truncated(index.prompts), widths=encoders.widths)
    content = json.dumps(asdict(index) | {"digest": index.digest}, indent=1) + "\n"
    write_bytes(Path(cache.directory) / INDEX, content.encode())
    return index


def write_shard(path: Path, parts: list[dict[str, Tensor]], digest: str) -> None:
    """
    Raises:
        UserError: an encoder's values are not finite.
    """
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} is not finite; try data.cache.dtype=float32")
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"digest": digest})


class TextEncoders:
    """The text encoders of diffusers' StableDiffusion3Pipeline, which is loaded without transformer and VAE.

    The encoders are loaded on their own, since the pipeline fills missing weights with random numbers.
    """

    def __init__(self, directory: Path, names: Sequence[str], index: CacheIndex, device: str) -> None:
        diffusers: Any = import_module("diffusers")  # takes seconds
        transformers: Any = import_module("transformers")
        for name in names:
            tokenizer = directory / name.replace("text_encoder", "tokenizer")
            if not tokenizer.is_dir():
                raise UserError(f"{tokenizer} is missing: it should hold the tokenizer of {name}")
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        classes = dict.fromkeys(CLIPS, "CLIPTextModelWithProjection") | {T5: "T5EncoderModel"}
        dtype = getattr(torch, index.dtype)
        parts: dict[str, Any] = {
            name: load_transformers(classes[name], directory / name, f"its {name}", dtype=dtype).to(device)
            for name in names
        }
        config: Any = diffusers.SD3Transformer2DModel.load_config(directory / "transformer", local_files_only=True)
        if T5 not in names:  # then the pipeline reads the width of zeros from a transformer
            with torch.device("meta"):
                transformer = diffusers.SD3Transformer2DModel.from_config(config)
            parts |= {T5: None, "tokenizer_3": None, "transformer": transformer}
        try:
            self.pipe: Any = diffusers.StableDiffusion3Pipeline.from_pretrained(
                directory, local_files_only=True, **{"transformer": None, "vae": None, "scheduler": None, **parts}
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{directory}: the pipeline does not load ({first_line(error)}); download it again"
            ) from error
        self.names, self.max_length, self.device = names, index.max_length, device
        self.widths = {"words": config["joint_attention_dim"], "pooled": config["pooled_projection_dim"]}

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return clip, pooled and, with T5, t5; on the CPU."""
        words, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_length,
        )
        width = sum(getattr(self.pipe, name).config.hidden_size for name in CLIPS)
        encoded = {"clip": words[:, :CLIP_LENGTH, :width], "pooled": pooled}
        encoded |= {"t5": words[:, CLIP_LENGTH:]} if T5 in self.names else {}
        return {name: tensor.cpu().contiguous() for name, tensor in encoded.items()}

    def truncated(self, prompts: Sequence[str]) -> dict[str, int]:
        """Return how many prompts are longer than each encoder takes."""
        limits = {name: self.max_length if name == T5 else CLIP_LENGTH for name in self.names}
        tokenizers = {name: getattr(self.pipe, name.replace("text_encoder", "tokenizer")) for name in self.names}
        return {
            name: sum(len(tokenizers[name](prompt, verbose=False).input_ids) > limit for prompt in prompts)
            for name, limit in limits.items()
        }
