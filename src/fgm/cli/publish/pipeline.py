"""A finished distillation of Stable Diffusion 3 as a directory that diffusers' StableDiffusion3Pipeline loads:

    README.md               the model card: origin, how to call it, measurements
    model_index.json        the class of each part
    transformer/            the teacher's config, the generator's averaged weights
    scheduler/              Euler steps at the sigmas that a call gives, unshifted
    vae/, text_encoder*/, tokenizer*/      the teacher's
    pytorch_lora_weights.safetensors       with lora=keep: the adapter, next to the teacher's own transformer/

Only files that contain data are copied or linked, and none is executed. The tests read an adapter with diffusers'
lora_state_dict; load_lora_weights, which continues with peft, has not been tested.

One Euler step from sigma = t* to 0 is x - t* v(x, t*), the generator's step (networks/generator.py), if x = c_in z are the
pipeline's initial latents. Several steps are the scheduler's stochastic ones: x_0, then (1 - t) x_0 + t eps with new eps.
"""

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgm.cli.loading import generator_network, weights_file
from fgm.data.encodings import ENCODERS, INDEX, CacheIndex
from fgm.evaluation.sources import atomic_folder
from fgm.networks.lora import LoRA
from fgm.utils.errors import UserError
from fgm.utils.pipelines import BILLIONS, require_parts
from fgm.utils.pretrained import locate, weight_files
from fgm.utils.records import write_json

SD3 = "fgm.networks.sd3.pretrained"
A, B = ".lora_A.weight", ".lora_B.weight"
DATA_SUFFIXES = (".json", ".txt", ".model")  # configs and tokenizers
CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "text_encoder_3": ("transformers", "T5EncoderModel"),
    "tokenizer_3": ("transformers", "T5TokenizerFast"),
    "image_encoder": (None, None),
    "feature_extractor": (None, None),
}


@dataclass(frozen=True)
class SD3Run:
    """A finished distillation of Stable Diffusion 3.

    Attributes:
        config: the run's.
        network: config node of the network whose transformer, VAE and encoders the pipeline uses.
        directory: of those parts.
        parts: names of the teacher's encoders and tokenizers that the pipeline uses.
    """

    config: dict[str, Any]
    network: dict[str, Any]
    directory: Path
    parts: tuple[str, ...]

    @property
    def method(self) -> dict[str, Any]:
        return self.config["method"]

    @cached_property
    def adapters(self) -> LoRA | None:
        return instantiate(self.method["adapters"]) if self.method.get("adapters") else None

    @property
    def weights(self) -> Path:
        return weights_file(self.config)

    @property
    def steps(self) -> int:
        return self.method.get("steps", 1)

    @property
    def teacher_name(self) -> str:
        """A hub id, or the name of a directory without its path."""
        return self.network["model"] if self.network["model"] in BILLIONS else Path(self.network["model"]).name


def sd3_run(config: dict[str, Any]) -> SD3Run:
    """Return the run of a config.

    Raises:
        UserError: it is no distillation of Stable Diffusion 3, or a part of the pipeline is missing.
    """
    method, network = config["method"], config["network"]
    if network["_target_"] == SD3 and "t_star" in method:
        adapted = config["teacher"].get("net", config["teacher"])
        network = adapted if method.get("adapters") else generator_network(config)
    if network["_target_"] != SD3 or "t_star" not in method:
        raise UserError(
            f"format = diffusers: {config['experiment']} is no distillation of Stable Diffusion 3; "
            "choose format=png, edm or geneval"
        )
    if config["path"]["_target_"] != "fgm.flow.paths.RectifiedPath":
        raise UserError("format = diffusers: its schedulers need path=rectified; choose format=png, edm or geneval")
    encoders = encoders_of(network)
    directory = require_parts(network["model"], ("transformer", "vae", *encoders))
    tokenizers = tuple(name.replace("text_encoder", "tokenizer") for name in encoders)
    for name in tokenizers:
        if not (directory / name).is_dir():
            raise UserError(f"{directory / name} is missing: it should have a tokenizer; download it again")
    return SD3Run(config, network, directory, encoders + tokenizers)


def encoders_of(network: dict[str, Any]) -> tuple[str, ...]:
    """Return the encoders of the run's prompts, or those on this machine if the prompts are not.

    Raises:
        UserError: a CLIP is missing, without which diffusers' pipeline cannot run.
    """
    index = Path(network["text"]["cache"]["directory"]) / INDEX
    here = [name for name in ENCODERS if weight_files(locate(network["model"]) / name)]
    used = list(CacheIndex.from_file(index).encoders) if index.is_file() else here
    missing = [name for name in ENCODERS[:2] if name not in used]
    if missing:
        raise UserError(
            f"format = diffusers: the prompts were encoded without {' and '.join(missing)}, and diffusers' pipeline can "
            "only do without T5; choose format=png, edm or geneval"
        )
    return tuple(name for name in ENCODERS if name in used)


def write_pipeline(run: SD3Run, card: str, out: Path, merge: bool, dtype: str, link: bool) -> None:
    """Write the pipeline to a directory, or nothing if that fails.

    Args:
        run: the run.
        card: text of README.md.
        out: the directory.
        merge: add an adapter to the teacher's weights, instead of saving it next to them.
        dtype: float32, bfloat16 or float16, of the generator's weights.
        link: make symbolic links to the teacher's files instead of copies.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    def converted(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in tensors.items()}

    with atomic_folder(out) as folder:
        for part in ("vae", *run.parts):
            copy_part(run.directory / part, folder / part, link)
        source, target = run.directory / "transformer", folder / "transformer"
        if run.adapters and not merge:
            copy_part(source, target, link)
            save_lora: Any = StableDiffusion3Pipeline.save_lora_weights
            save_lora(folder, transformer_lora_layers=converted(adapter(run)))
        else:
            target.mkdir()
            shutil.copyfile(source / "config.json", target / "config.json")
            weights = converted(merged_weights(run) if run.adapters else generator_weights(run))
            save_file(weights, target / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=run.steps > 1)
        scheduler.save_pretrained(folder / "scheduler")  # unshifted, so that it steps at a call's own sigmas
        parts = ("vae", "transformer", "scheduler", *run.parts)
        classes = {name: pair if name in parts else (None, None) for name, pair in CLASSES.items()}
        write_json(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"} | classes)
        for file in run.directory.iterdir():
            if file.is_file() and file.name.lower().startswith(("license", "licence", "notice")):
                shutil.copyfile(file, folder / file.name)
        (folder / "README.md").write_text(card)


def copy_part(source: Path, target: Path, link: bool) -> None:
    """Copy or link configs, a tokenizer's files, and one complete set of weights."""
    weights = weight_files(source)
    indexed = len(weights) > 1  # a leftover index of a single file would confuse diffusers
    configs = [f for f in source.iterdir() if f.suffix in DATA_SUFFIXES and (indexed or ".index" not in f.suffixes)]
    target.mkdir(parents=True)
    for file in (*configs, *weights):
        if link:
            os.symlink(file.resolve(), target / file.name)
        else:
            shutil.copyfile(file, target / file.name)


def generator_weights(run: SD3Run) -> dict[str, Tensor]:
    """Return the averaged weights, or the adapter's, by the transformer's names."""
    return {name.removeprefix("transformer."): tensor for name, tensor in load_file(run.weights).items()}


def adapter(run: SD3Run) -> dict[str, Tensor]:
    """Return A and (alpha/rank) B of each layer: readers assume alpha = rank."""
    assert run.adapters is not None
    scale = run.adapters.alpha / run.adapters.rank
    return {n: scale * tensor if n.endswith(B) else tensor for n, tensor in generator_weights(run).items()}


def merged_weights(run: SD3Run) -> dict[str, Tensor]:
    """Return W + (alpha/rank) B A in float32, for the teacher's W in the dtype of the run's base network."""
    assert run.adapters is not None
    base, parts = getattr(torch, run.adapters.base), adapter(run)
    files = weight_files(run.directory / "transformer")
    weights = {name: w.to(base).float() for file in files for name, w in load_file(file).items()}
    for name in (name.removesuffix(A) for name in parts if name.endswith(A)):
        weights[f"{name}.weight"] += parts[name + B] @ parts[name + A]
    return weights
