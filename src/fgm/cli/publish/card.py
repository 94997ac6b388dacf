"""The model card of an exported pipeline. Every number in it is the run's own, with its protocol and its n."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load
from hydra.utils import instantiate
from yaml import YAMLError

from fgm.analysis.tables import table_head, table_row
from fgm.cli.publish.pipeline import SD3Run
from fgm.networks.generator import input_scale, step_times
from fgm.utils.files import sha256_of
from fgm.utils.pipelines import BILLIONS, FACTOR
from fgm.utils.pretrained import fingerprint, weight_files
from fgm.utils.records import counted

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


def model_card(run: SD3Run, merge: bool, dtype: str) -> str:
    """Return README.md of the pipeline, Markdown with the hub's header."""
    results = json.loads((Path(run.config["run_dir"]) / "results.json").read_text())
    method, size, licence = run.method, run.network["size"], teacher_licence(run)
    max_length, sigmas = run.network["text"]["cache"]["max_length"], step_times(method["t_star"], run.steps)
    config = json.loads((run.directory / "transformer" / "config.json").read_text())
    std = instantiate(run.config["data"]).std if method["c_in"] == "variance" else 1.0
    kept = run.adapters is not None and not merge
    return CARD.format(
        header=ModelCardData(
            library_name="diffusers", pipeline_tag="text-to-image", **licence,
            base_model=run.teacher_name if run.teacher_name in BILLIONS else None,
        ).to_yaml(),
        experiment=run.config["experiment"], teacher=run.teacher_name, steps=counted(run.steps, "network call"),
        guidance=1.0 if method["guidance"] == "none" else run.config["teacher"].get("scale", 1.0),
        trained=f"adapters of rank {run.adapters.rank} on its weights" if run.adapters else "a whole network",
        t_star=method["t_star"], sigmas=sigmas, max_length=max_length, dtype=dtype,
        c_in=input_scale(instantiate(run.config["path"]), method["t_star"], method["c_in"], std),
        load_adapter='\npipeline.load_lora_weights(".")  # needs peft' if kept else "",
        shape=", ".join(map(str, (1, config["in_channels"], size // FACTOR, size // FACTOR))),
        call={"sigmas": sigmas, "num_inference_steps": run.steps, "guidance_scale": 1.0,
              "max_sequence_length": max_length, "height": size, "width": size},
        measurements=measurements(results), origin=origin(run, results),
        licence=f"As {run.teacher_name}, from whose weights these were made: "
        + ", ".join(f"{key}: {value}" for key, value in licence.items()) if licence else
        f"See {run.teacher_name}: these weights were made from its weights and are bound by its licence.",
    )  # fmt: skip


def teacher_licence(run: SD3Run) -> dict[str, Any]:
    """Return the licence in the header of the teacher's own card, or nothing."""
    file = run.directory / "README.md"
    try:
        header = metadata_load(file) if file.is_file() else None
    except (ValueError, YAMLError):
        return {}
    return {key: header[key] for key in ("license", "license_name", "license_link") if header and header.get(key)}


def measurements(results: dict[str, Any]) -> str:
    """Return a table of the generator's and the teacher's metrics, as the run recorded them."""
    rows = [row for row in results["results"] if row["weights"] in ("ema", "teacher")]
    if not rows:
        return "None yet."
    lines = table_head(["sampler", "metric", "value", "n", "protocol"])
    for row in rows:
        sampler = f"{counted(row['nfe'], 'step')}, {row['weights']}"
        lines.append(table_row([sampler, row["metric"], f"{row['value']:.4g}", str(row["n"]), row["protocol"]]))
    return "\n".join(lines)


def origin(run: SD3Run, results: dict[str, Any]) -> str:
    """Return where the weights come from, one line each."""
    keys = ("commit", "config_digest", "seed", "images_seen", "date")
    lines = {"experiment": run.config["experiment"]} | {key: results[key] for key in keys if key in results}
    lines["sha256 of the run's weights"] = sha256_of(run.weights)
    lines["fingerprint of the teacher's transformer (fgm)"] = fingerprint(weight_files(run.directory / "transformer"))
    return "\n".join(f"- {key}: {value}" for key, value in lines.items())
