"""A run as a directory that diffusers' StableDiffusion3Pipeline loads, whole or absent:

    README.md               the model card: where it is from, how to call it, what was measured
    model_index.json        which class each part is of
    transformer/            the teacher's config, the generator's averaged weights
    scheduler/              Euler steps at the sigmas that a call gives, unshifted
    vae/, text_encoder*/, tokenizer*/      the teacher's own
    pytorch_lora_weights.safetensors       with lora=keep: the adapter, beside the teacher's own transformer/

Files are copied or linked, by kinds that hold data alone, and nothing in them is executed. Of an adapter the tests read
what diffusers' lora_state_dict makes of the file; load_lora_weights goes on to peft, and that has not been run.

One Euler step from sigma = t* to 0 is x - t* v(x, t*), the generator's own step (networks/generator.py), if x = c_in z
are the latents that the pipeline is given. Of several steps it is the scheduler's stochastic kind: x_0, then
(1 - t) x_0 + t eps with fresh eps.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fgm.cli.publish import weights
from fgm.cli.publish.card import card
from fgm.cli.publish.plan import Plan
from fgm.data.encodings import ENCODERS
from fgm.evaluation.folders import atomic_folder
from fgm.utils.files import replacing
from fgm.utils.pretrained import weight_files
from fgm.utils.records import write_json

PLAIN = (".json", ".txt", ".model")  # configs and tokenizers
LICENCES = ("license", "licence", "notice")
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


def write_pipeline(plan: Plan, out: Path, merge: bool, dtype: str, linked: bool) -> None:
    """
    Args:
        plan: of the run.
        out: the directory.
        merge: an adapter into the teacher's weights; else it lies beside them.
        dtype: float32, bfloat16 or float16, of the generator's weights.
        linked: symbolic links to the teacher's files instead of copies.
    """
    with atomic_folder(out) as folder:
        for part in ("vae", *plan.encoders):
            take_part(plan.directory / part, folder / part, linked)
        for words in (name.replace("text_encoder", "tokenizer") for name in plan.encoders):
            take_part(plan.directory / words, folder / words, linked)
        write_transformer(plan, folder, merge, dtype, linked)
        write_scheduler(folder / "scheduler", plan.steps)
        write_json(folder / "model_index.json", model_index(plan))
        for file in licences(plan.directory):
            take(file, folder / file.name, linked=False)
        (folder / "README.md").write_text(card(plan, merge, dtype))


def take_part(source: Path, target: Path, linked: bool) -> None:
    """Configs, a tokenizer's files, and the weights that make it whole."""
    held = weight_files(source)
    index = [file for file in source.glob("*.safetensors.index.json") if len(held) > 1 and ".fp16." not in file.name]
    plain = [file for file in source.iterdir() if file.suffix in PLAIN and not file.name.endswith(".index.json")]
    for file in (*plain, *index, *held):
        take(file, target / file.name, linked)


def take(source: Path, target: Path, linked: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if linked:
        os.symlink(source.resolve(), target)
    else:
        shutil.copyfile(source, target)


def write_transformer(plan: Plan, folder: Path, merge: bool, dtype: str, linked: bool) -> None:
    source, target = plan.directory / "transformer", folder / "transformer"
    scale = plan.adapters.alpha / plan.adapters.rank if plan.adapters else 1.0
    if plan.adapters and not merge:
        take_part(source, target, linked)
        adapter = weights.in_dtype(weights.adapter(plan.generator, scale), dtype)
        write_weights(adapter, folder / "pytorch_lora_weights.safetensors")
        return
    take(source / "config.json", target / "config.json", linked)
    if plan.adapters:
        base = getattr(torch, plan.adapters.base)
        tensors = weights.merged(plan.generator, scale, weight_files(source), base)
    else:
        tensors = weights.whole(plan.generator)
    write_weights(weights.in_dtype(tensors, dtype), target / "diffusion_pytorch_model.safetensors")


def write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def write_scheduler(directory: Path, steps: int) -> None:
    """Without the shift of SD3's own, so that a call's sigmas are the ones that it steps at."""
    directory.mkdir()
    scheduler = {"_class_name": CLASSES["scheduler"][1], "num_train_timesteps": 1000, "shift": 1.0}
    write_json(directory / "scheduler_config.json", scheduler | {"stochastic_sampling": steps > 1})


def model_index(plan: Plan) -> dict[str, Any]:
    """Classes of diffusers and transformers alone; none for a part that is not there."""
    last = ENCODERS[-1]
    lacking = () if last in plan.encoders else (last, last.replace("text_encoder", "tokenizer"))
    classes = {part: [None, None] if part in lacking else list(pair) for part, pair in CLASSES.items()}
    return {"_class_name": "StableDiffusion3Pipeline"} | classes


def licences(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.iterdir()) if file.is_file() and file.name.lower().startswith(LICENCES)]
