"""Published weights on this machine, checkpoints and diffusers pipelines: where they lie, whether they are whole, what
they will need.

    DIRECTORY/transformer/            config.json, diffusion_pytorch_model.safetensors, or its shards and their index
              vae/                    the same
              text_encoder[_2|_3]/    config.json, model.safetensors, or its shards and their index
              tokenizer[_2|_3]/       the tokenizer's files

DIRECTORY is a path, or the snapshot of a hub id in the hub's cache. Nothing is downloaded or executed, and neither
torch nor diffusers is imported to look: what is missing is said at once.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError
from fgm.utils.files import read_object, sha256_of

PIXELS = 16  # a patch of 2 latents of 8 pixels each
SD3_MEDIUM = "stabilityai/stable-diffusion-3-medium-diffusers"
BILLIONS = {  # parameters of the transformer
    SD3_MEDIUM: 2.03,
    "stabilityai/stable-diffusion-3.5-medium": 2.24,
    "stabilityai/stable-diffusion-3.5-large": 8.06,
}
SHAPES: dict[str, dict[str, Any]] = {  # of the transformer, as in its config.json, beside what all have
    SD3_MEDIUM: {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192,
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
    },
    "stabilityai/stable-diffusion-3.5-large": {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
}  # fmt: skip
SHARED = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/"
SOURCES = {  # of checkpoints that a teacher may be read from
    "edm-cifar10-32x32-uncond-vp.pkl": EDM,
    "edm-cifar10-32x32-cond-vp.pkl": EDM,
    "edm-cifar10-32x32-uncond-ve.pkl": EDM,
    "edm-imagenet-64x64-cond-adm.pkl": EDM,
    "edm2-img64-s-1073741-0.075.pkl": EDM2,
    "edm2-img64-m-2147483-0.060.pkl": EDM2,
    "edm2-img64-l-1073741-0.040.pkl": EDM2,
    "edm2-img64-xl-0671088-0.040.pkl": EDM2,
    "cfm_cifar10_weights_step_400000.pt": "https://github.com/atong01/conditional-flow-matching/releases",
    "checkpoint_8.pth": "https://github.com/gnobitab/RectifiedFlow (its README links to it)",
}
BESIDE = 5.66  # billions of parameters of two CLIPs (0.12, 0.69), T5-XXL's encoder (4.76) and the VAE (0.08)
BYTES = 34  # a parameter: bfloat16 teacher; float32 generator, online, ema; a gradient; two times two moments of Adam


def locate(model: str) -> Path:
    """The directory of a path or of a hub id; it need not exist."""
    if Path(model).is_dir():
        return Path(model)
    snapshots = hub_cache() / f"models--{model.replace('/', '--')}"
    revision = snapshots / "refs" / "main"
    return snapshots / "snapshots" / revision.read_text().strip() if revision.is_file() else Path(model)


def hub_cache() -> Path:
    """As the hub's own library finds it."""
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def require_checkpoint(checkpoint: str, sha256: str | None) -> Path:
    """The file, where it is there and hashes to sha256 or what begins so.

    Raises:
        UserError: it does not; of a published file the line says where to get it.
    """
    file = Path(checkpoint)
    if not file.is_file():
        source = SOURCES.get(file.name)
        where = f"; it comes from {source}, nothing is downloaded" if source else ""
        raise UserError(f"there is no checkpoint {file}{where}")
    if sha256:
        found = sha256_of(file)
        if not found.startswith(sha256.lower()):
            raise UserError(f"{file} has sha256 {found[:16]}..., and {sha256[:16]} is asked for: it is another file")
    return file


def weight_files(directory: Path) -> list[Path]:
    """Of one part of a pipeline, all there; none where any is missing."""
    for stem in ("diffusion_pytorch_model", "model"):
        single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            shards = shards_of(index)
            return shards if all(shard.is_file() for shard in shards) else []
    return []


def shards_of(index: Path) -> list[Path]:
    """The files beside an index of shards, there or not.

    Raises:
        UserError: the index tells none.
    """
    told = read_object(index, "the shards of a network").get("weight_map")
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
        raise UserError(f"{index}: tells no weight_map from weights to their files; download it again")
    return sorted({index.with_name(name) for name in told.values()})


def require(model: str, parts: Iterable[str]) -> Path:
    """The directory, in which every part is whole.

    Raises:
        UserError: a part is missing; the line says where to put it, how large it is and what training will need.
    """
    directory = locate(model)
    lacking = [p for p in parts if not (directory / p / "config.json").is_file() or not weight_files(directory / p)]
    if lacking:
        raise UserError(
            f"{model}: no {' and no '.join(f'{part}/' for part in lacking)} on this machine; {remedy(model)}"
        )
    return directory


def unet_directory(model: str) -> Path:
    """Where a UNet2DModel lies: in unet/ of a pipeline's directory, or in the directory itself.

    Raises:
        UserError: nowhere, or it is another network.
    """
    directory = locate(model)
    folder = directory / "unet" if (directory / "unet" / "config.json").is_file() else directory
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise UserError(
            f"{model}: no config.json and diffusion_pytorch_model.safetensors of a UNet2DModel on this machine, there "
            f"or in unet/; run hf download {model}, or give its directory"
        )
    kind = read_object(folder / "config.json", "a network's arguments").get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(f"{folder / 'config.json'}: is of a {kind}, and UNet2DModel is read")
    return folder


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Of the scheduler beside a network, in scheduler/ of its pipeline or in its own directory; empty where none is."""
    for place in (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"):
        if place.is_file():
            return read_object(place, "a scheduler's settings")
    return {}


def architecture(model: str) -> dict[str, Any]:
    """The arguments of diffusers' SD3Transformer2DModel, from the model's directory or as known.

    Raises:
        UserError: it is neither here nor known.
    """
    file = locate(model) / "transformer" / "config.json"
    if file.is_file():
        found = read_object(file, "the transformer's arguments")
        return {key: value for key, value in found.items() if not key.startswith("_")}
    if model not in SHAPES:
        raise UserError(
            f"network.model = {model}: there is no {file}, and its shape is not known; {', '.join(SHAPES)} are"
        )
    return SHARED | SHAPES[model]


def remedy(model: str) -> str:
    """Where to put it, how large it is, what it will need."""
    hub_id = model if model in BILLIONS else SD3_MEDIUM
    size, memory = 2 * (BILLIONS[hub_id] + BESIDE), BYTES * BILLIONS[hub_id]
    return (
        f"accept its licence and run hf download {hub_id} (at least {size:.0f} GB), or give "
        f"network.model=<its diffusers directory: transformer/, vae/, text_encoder*/, tokenizer*/>; "
        f"distilling it whole takes {memory:.0f} GB of device memory, and activations"
    )


def require_size(size: int) -> None:
    if size % PIXELS:
        raise UserError(
            f"network.size = {size} is no multiple of {PIXELS}: Stable Diffusion 3 would crop it; give another"
        )


def require_models(node: Any) -> None:
    """Of every network below a config's node.

    Raises:
        UserError: its weights are missing or random, or its pictures are of a size that it would crop.
    """
    if not isinstance(node, dict):
        return
    if node.get("_target_") == "fgm.networks.sd3.pretrained":
        if node.get("random_init"):
            raise UserError(
                "network.random_init = true: random weights are to be timed or counted (make bench, make memory)"
            )
        require_size(node["size"])
        require(node["model"], ("transformer", "vae"))
    if str(node.get("_target_")).startswith("fgm.teachers.diffusers_unet."):
        unet_directory(node["directory"])
    for value in node.values():
        require_models(value)
