"""The model card of an exported pipeline. Every number in it is the run's own, with its protocol and its n."""

import json
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import instantiate

from fgm.analysis.tables import table_head, table_row
from fgm.cli.publish.plan import Plan
from fgm.networks.generator import input_scale, step_times
from fgm.networks.sd3 import BILLIONS, FACTOR
from fgm.utils.files import sha256_of
from fgm.utils.records import counted

CALL = """```python
import torch
from diffusers import StableDiffusion3Pipeline

pipeline = StableDiffusion3Pipeline.from_pretrained(".", torch_dtype=torch.{dtype})  # this directory{adapter}
pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
z = torch.randn({shape}, generator=torch.Generator().manual_seed(0))
call = {call}
image = pipeline("a photo of a bench", latents={c_in!r} * z, **call).images[0]
```"""


def card(plan: Plan, merge: bool, dtype: str) -> str:
    """README.md of the pipeline, in Markdown with the hub's header."""
    results = json.loads((Path(plan.config["run_dir"]) / "results.json").read_text())
    header = yaml.safe_dump(header_of(plan), sort_keys=False)
    title = f"# {plan.config['recipe']}: {plan.teacher_name} in {counted(plan.steps, 'network call')}\n"
    parts = [f"---\n{header}---\n", title, origin(plan)]
    parts += ["## How to call it\n", explained(plan), called(plan, merge, dtype), ""]
    parts += ["## What was measured\n", measured(results), "## Where it is from\n", provenance(plan, results)]
    parts += ["## Licence\n", licence(plan)]
    return "\n".join(parts) + "\n"


def header_of(plan: Plan) -> dict[str, Any]:
    told = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    told |= {"base_model": plan.teacher_name} if plan.teacher_name in BILLIONS else {}
    return told | {key: value for key, value in teacher_header(plan).items() if key.startswith("license")}


def teacher_header(plan: Plan) -> dict[str, Any]:
    """The header of the teacher's own card, where it has one."""
    file = plan.directory / "README.md"
    text = file.read_text() if file.is_file() else ""
    try:
        found = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except (yaml.YAMLError, IndexError):
        found = {}
    return found if isinstance(found, dict) else {}


def origin(plan: Plan) -> str:
    guidance = 1.0 if plan.method["guidance"] == "none" else plan.config["teacher"].get("scale", 1.0)
    trained = f"adapters of rank {plan.adapters.rank} on its own weights" if plan.adapters else "a whole network"
    return (
        f"Distilled by Flow Generator Matching (arXiv 2410.19310) from {plan.teacher_name} under guidance "
        f"{guidance:g}, as {trained}, with t* = {plan.method['t_star']}. Its samples already are those of the guided "
        "teacher: it is called without guidance.\n"
    )


def explained(plan: Plan) -> str:
    """What a call must hold, and why."""
    lines = [
        f"- `sigmas={sigmas(plan)}`: when the generator reads its network; scheduler/ does not shift them.",
        f"- `latents={scale(plan)!r} * z` with standard normal z: the generator's input is c_in z.",
        "- `guidance_scale=1.0`: none. Negative prompts have no effect.",
        f"- `max_sequence_length={plan.max_length}`: the length of T5's tokens in training.",
    ]
    return "\n".join(lines) + "\n"


def called(plan: Plan, merge: bool, dtype: str) -> str:
    """Code that draws one picture."""
    side = plan.size // FACTOR
    call = {"sigmas": sigmas(plan), "num_inference_steps": plan.steps, "guidance_scale": 1.0}
    call |= {"max_sequence_length": plan.max_length, "height": plan.size, "width": plan.size}
    apart = plan.adapters and not merge
    adapter = '\npipeline.load_lora_weights(".")  # needs peft' if apart else ""
    shape = ", ".join(map(str, (1, plan.channels, side, side)))
    return CALL.format(dtype=dtype, adapter=adapter, shape=shape, call=call, c_in=scale(plan))


def sigmas(plan: Plan) -> list[float]:
    return step_times(plan.method["t_star"], plan.steps)


def scale(plan: Plan) -> float:
    """c_in."""
    std = instantiate(plan.config["data"]).std if plan.method["c_in"] == "variance" else 1.0
    return input_scale(instantiate(plan.config["path"]), plan.method["t_star"], plan.method["c_in"], std)


def measured(results: dict[str, Any]) -> str:
    """The generator's numbers and the teacher's, as the run recorded them."""
    rows = [row for row in results["results"] if row["weights"] in ("ema", "teacher")]
    if not rows:
        return "Nothing yet.\n"
    lines = table_head(["sampler", "metric", "value", "n", "protocol"])
    for row in rows:
        told = (f"{row['value']:.4g}", str(row["n"]), row["protocol"])
        lines.append(table_row([f"{counted(row['nfe'], 'step')}, {row['weights']}", row["metric"], *told]))
    return "\n".join(lines) + "\n"


def provenance(plan: Plan, results: dict[str, Any]) -> str:
    told = {
        name: results[name] for name in ("commit", "config_digest", "seed", "images_seen", "date") if name in results
    }
    told |= {"weights of the run, sha256": sha256_of(plan.generator)}
    told |= {"teacher's transformer, fgm's fingerprint": plan.teacher_fingerprint}
    return "\n".join(f"- {name}: {value}" for name, value in {"recipe": plan.config["recipe"], **told}.items()) + "\n"


def licence(plan: Plan) -> str:
    """As the teacher's own files state it."""
    header = teacher_header(plan)
    stated = ", ".join(
        f"{key}: {header[key]}" for key in ("license", "license_name", "license_link") if header.get(key)
    )
    if not stated:
        return f"See {plan.teacher_name}'s: these weights were made from its weights, and are bound by its licence."
    return f"As {plan.teacher_name}'s, from whose weights these were made, states: {stated}."
