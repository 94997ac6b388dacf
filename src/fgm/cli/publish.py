"""A finished distillation of Stable Diffusion 3 as a directory that diffusers' StableDiffusion3Pipeline loads:

    README.md               the model card: how to call it, measurements with protocol and n, origin
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

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData, metadata_load
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor
from yaml import YAMLError

from fgm.analysis.tables import table_head, table_row
from fgm.cli.loading import generator_network, weights_file
from fgm.cli.runs import RESULTS
from fgm.data.encodings import ENCODERS, INDEX, CacheIndex
from fgm.evaluation.sources import atomic_folder
from fgm.networks.generator import input_scale, step_times
from fgm.networks.lora import LoRA
from fgm.utils.errors import UserError
from fgm.utils.files import sha256_of
from fgm.utils.pipelines import BILLIONS, FACTOR, require_parts
from fgm.utils.pretrained import fingerprint, locate, weight_files
from fgm.utils.records import counted, write_json

SD3 = "fgm.networks.sd3.pretrained"
A, B = ".lora_A.weight", ".lora_B.weight"
DATA_SUFFIXES = (".json", ".txt", ".model")  # configs and tokenizers
CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"), "transformer": ("diffusers", "SD3Transformer2DModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"), "tokenizer": ("transformers", "CLIPTokenizer"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"), "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "text_encoder_3": ("transformers", "T5EncoderModel"), "tokenizer_3": ("transformers", "T5TokenizerFast"),
    "image_encoder": (None, None), "feature_extractor": (None, None),
}  # fmt: skip
CARD = """---
{header}
---

# {experiment}: {teacher} in {steps}

Distilled by Flow Generator Matching (arXiv 2410.19310) from {teacher} under guidance {guidance:g}, as {trained}, with t* = \
{t_star}. Its samples are already those of the guided teacher: call it without guidance.

## How to call it

- `sigmas={sigmas}`: the times at which the generator calls its network; scheduler/ does not shift them.
- `latents={c_in!r} * z` with standard normal z: the generator's input is c_in z.
- `guidance_scale=1.0`: none. Negative prompts have no effect.
- `max_sequence_length={max_length}`: the number of T5's tokens in training.

```python
import torch
from diffusers import StableDiffusion3Pipeline

pipeline = StableDiffusion3Pipeline.from_pretrained(".", torch_dtype=torch.{dtype})  # this directory{load_adapter}
pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
z = torch.randn({shape}, generator=torch.Generator().manual_seed(0))
call = {call}
image = pipeline("a photo of a bench", latents={c_in!r} * z, **call).images[0]
```

## Measurements

{measurements}

## Origin

{origin}

## Licence

{licence}
"""


@dataclass(frozen=True)
class SD3Run:
    """A finished distillation of Stable Diffusion 3.

    Attributes:
        config: the run's.
        network: config node of the network whose transformer, VAE and encoders the pipeline uses.
        directory: of those parts.
        parts: names of the teacher's encoders and tokenizers that the pipeline uses.
        adapters: LoRA that the generator was trained with; None for a whole network.
        teacher: a hub id, or the name of a directory without its path.
    """

    config: dict[str, Any]
    network: dict[str, Any]
    directory: Path
    parts: tuple[str, ...]
    adapters: LoRA | None
    teacher: str

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights, or the adapter's A and (alpha/rank) B, by the transformer's names.

        Readers of an adapter assume alpha = rank.
        """
        weights = {n.removeprefix("transformer."): w for n, w in load_file(weights_file(self.config)).items()}
        scale = self.adapters.alpha / self.adapters.rank if self.adapters else 1.0
        return {name: scale * w if name.endswith(B) else w for name, w in weights.items()}


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
    adapters = instantiate(method["adapters"]) if method.get("adapters") else None
    teacher = network["model"] if network["model"] in BILLIONS else Path(network["model"]).name
    return SD3Run(config, network, directory, encoders + tokenizers, adapters, teacher)


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


def write_pipeline(run: SD3Run, out: Path, merge: bool, dtype: str, link: bool) -> None:
    """Write the pipeline and its model card to a directory, or nothing if that fails.

    Args:
        merge: add an adapter to the teacher's weights, instead of saving it next to them.
        dtype: float32, bfloat16 or float16, of the generator's weights.
        link: make symbolic links to the teacher's files instead of copies.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    card = model_card(run, merge, dtype)
    with atomic_folder(out) as folder:
        for part in ("vae", *run.parts):
            copy_part(run.directory / part, folder / part, link)
        write_transformer(run, folder, merge, getattr(torch, dtype), link)
        scheduler: Any = FlowMatchEulerDiscreteScheduler(
            shift=1.0, stochastic_sampling=run.config["method"].get("steps", 1) > 1
        )
        scheduler.save_pretrained(folder / "scheduler")  # unshifted, so that it steps at a call's own sigmas
        parts = ("vae", "transformer", "scheduler", *run.parts)
        classes = {name: pair if name in parts else (None, None) for name, pair in CLASSES.items()}
        write_json(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"} | classes)
        for file in run.directory.iterdir():
            if file.is_file() and file.name.lower().startswith(("license", "licence", "notice")):
                shutil.copyfile(file, folder / file.name)
        (folder / "README.md").write_text(card)


def write_transformer(run: SD3Run, folder: Path, merge: bool, dtype: torch.dtype, link: bool) -> None:
    """Write transformer/ with the generator's weights, or the teacher's own and the adapter beside it."""
    from diffusers import StableDiffusion3Pipeline

    source, target = run.directory / "transformer", folder / "transformer"
    weights = merged_weights(run, run.adapters) if run.adapters and merge else run.weights()
    converted = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    if run.adapters and not merge:
        copy_part(source, target, link)
        save_lora: Any = StableDiffusion3Pipeline.save_lora_weights
        save_lora(folder, transformer_lora_layers=converted)
    else:
        target.mkdir()
        shutil.copyfile(source / "config.json", target / "config.json")
        save_file(converted, target / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


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


def merged_weights(run: SD3Run, adapters: LoRA) -> dict[str, Tensor]:
    """Return W + (alpha/rank) B A in float32, for the teacher's W in the dtype of the run's base network."""
    base, parts, files = getattr(torch, adapters.base), run.weights(), weight_files(run.directory / "transformer")
    weights = {name: w.to(base).float() for file in files for name, w in load_file(file).items()}
    for name in (name.removesuffix(A) for name in parts if name.endswith(A)):
        weights[f"{name}.weight"] += parts[name + B] @ parts[name + A]
    return weights


def model_card(run: SD3Run, merge: bool, dtype: str) -> str:
    """Return README.md of the pipeline, Markdown with the hub's header."""
    config, method, size, licence = run.config, run.config["method"], run.network["size"], teacher_licence(run)
    steps, max_length = method.get("steps", 1), run.network["text"]["cache"]["max_length"]
    sigmas, side = step_times(method["t_star"], steps), size // FACTOR
    channels = json.loads((run.directory / "transformer" / "config.json").read_text())["in_channels"]
    std = instantiate(config["data"]).std if method["c_in"] == "variance" else 1.0
    return CARD.format(
        header=ModelCardData(
            library_name="diffusers", pipeline_tag="text-to-image", **licence,
            base_model=run.teacher if run.teacher in BILLIONS else None,
        ).to_yaml(),
        experiment=config["experiment"], teacher=run.teacher, steps=counted(steps, "network call"),
        guidance=1.0 if method["guidance"] == "none" else config["teacher"].get("scale", 1.0),
        trained=f"adapters of rank {run.adapters.rank} on its weights" if run.adapters else "a whole network",
        t_star=method["t_star"], sigmas=sigmas, max_length=max_length, dtype=dtype,
        c_in=input_scale(instantiate(config["path"]), method["t_star"], method["c_in"], std),
        load_adapter='\npipeline.load_lora_weights(".")  # needs peft' if run.adapters and not merge else "",
        shape=f"1, {channels}, {side}, {side}",
        call={"sigmas": sigmas, "num_inference_steps": steps, "guidance_scale": 1.0,
              "max_sequence_length": max_length, "height": size, "width": size},
        licence=f"As {run.teacher}, from whose weights these were made: "
        + ", ".join(f"{key}: {value}" for key, value in licence.items()) if licence else
        f"See {run.teacher}: these weights were made from its weights and are bound by its licence.",
        **measurements_and_origin(run),
    )  # fmt: skip


def teacher_licence(run: SD3Run) -> dict[str, Any]:
    """Return the licence in the header of the teacher's own card, or nothing."""
    file = run.directory / "README.md"
    try:
        header = metadata_load(file) if file.is_file() else None
    except (ValueError, YAMLError):
        return {}
    return {key: header[key] for key in ("license", "license_name", "license_link") if header and header.get(key)}


def measurements_and_origin(run: SD3Run) -> dict[str, str]:
    """Return a table of the generator's and the teacher's recorded metrics, and where the weights come from."""
    results = json.loads((Path(run.config["run_dir"]) / RESULTS).read_text())
    lines = table_head(["sampler", "metric", "value", "n", "protocol"])
    rows = [row for row in results["results"] if row["weights"] in ("ema", "teacher")]
    for row in rows:
        sampler = f"{counted(row['nfe'], 'step')}, {row['weights']}"
        lines.append(table_row([sampler, row["metric"], f"{row['value']:.4g}", str(row["n"]), row["protocol"]]))
    keys = ("commit", "config_digest", "seed", "images_seen", "date")
    origin = {"experiment": run.config["experiment"]} | {key: results[key] for key in keys if key in results}
    origin["sha256 of the run's weights"] = sha256_of(weights_file(run.config))
    origin["fingerprint of the teacher's transformer (fgm)"] = fingerprint(weight_files(run.directory / "transformer"))
    return {
        "measurements": "\n".join(lines) if rows else "None yet.",
        "origin": "\n".join(f"- {key}: {value}" for key, value in origin.items()),
    }
