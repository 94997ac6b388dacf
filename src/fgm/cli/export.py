"""python -m fgm.cli.export experiment=<recipe> [format=png|edm|geneval] [n=] [eval_seed=] [out=]: samples as PNGs.
format=diffusers [lora=merge|keep] [dtype=float32] [link=false] [out=<folder>]: the generator itself, as a pipeline.

The PNGs are the very samples that `make eval` measures, bit for bit: a folder that is exported with the same n and
eval_seed gets the same numbers. format=geneval is for models with prompts; it takes metadata=<file>.jsonl and
samples=4, and vocabulary=shapes for ShapeEval's words. The layouts are in evaluation/layouts.py.

The pipeline is a StableDiffusion3Pipeline's directory for stock diffusers, with a model card that says how to call it
(publish/pipeline.py). lora=keep leaves an adapter beside the teacher's weights, link=true links to the teacher's files.
"""

from pathlib import Path
from typing import Any

from fgm.cli.arguments import choice, required, whole, whole_or, yes
from fgm.cli.evaluators import device_of_rank, make, make_evaluation
from fgm.cli.finished import finished_run, sampler_source
from fgm.cli.score import read_questions
from fgm.evaluation.layouts import LAYOUTS, require_empty
from fgm.utils.errors import UserError, entry
from fgm.utils.files import require_place

OWN = {
    "format": "png", "n": "", "eval_seed": "", "out": "", "metadata": "", "samples": "4", "vocabulary": "geneval",
    "lora": "merge", "dtype": "float32", "link": "false",
}  # fmt: skip
PIPELINE, DTYPES = "diffusers", ("float32", "bfloat16", "float16")


def main(arguments: list[str]) -> None:
    config, own = finished_run(arguments, OWN)
    layout, evaluation = choice(own, "format", (*LAYOUTS, PIPELINE)), config["evaluation"]
    seed, n = whole_or(own, "eval_seed", evaluation["seed"]), whole_or(own, "n", evaluation["n"], 1)
    out = Path(own["out"] or f"{config['run_dir']}/export/{layout}")
    require_place(out)
    require_empty(out)
    if layout == PIPELINE:
        export_pipeline(config, own, out)
        return
    data = make(config["data"], "data")
    if len(data.shape) != 3:
        raise UserError(
            f"{config['recipe']} draws points of shape {tuple(data.shape)}, and PNGs hold images: make sample"
        )
    if layout == "geneval":
        export_prompts(config, data, own, seed, out)
    else:
        export_flat(config, data, (seed, n), layout, out)


def export_flat(config: dict[str, Any], data: Any, numbers: tuple[int, int], layout: str, out: Path) -> None:
    from fgm.evaluation.exporting import export_images

    seed, n = numbers
    evaluation = make_evaluation(config["evaluation"])
    source = sampler_source(config, evaluation, data, n, seed, device_of_rank())
    export_images(source, out, layout, evaluation.batch)
    print(
        f"{out}: {source.n} PNGs in layout {layout}, the samples that make eval measures with the same n and eval_seed"
    )


def export_pipeline(config: dict[str, Any], own: dict[str, str], out: Path) -> None:
    from fgm.cli.publish.plan import planned

    merge, linked = choice(own, "lora", ("merge", "keep")) == "merge", yes(own, "link")
    dtype, plan = choice(own, "dtype", DTYPES), planned(config)
    if not merge and not plan.adapters:
        raise UserError(f"lora = keep: {config['recipe']} trained a whole network; leave it out")
    from fgm.cli.publish.pipeline import write_pipeline

    write_pipeline(plan, out, merge, dtype, linked)
    print(f"{out}: a StableDiffusion3Pipeline for stock diffusers; its README.md says how to call it")


def export_prompts(config: dict[str, Any], data: Any, own: dict[str, str], seed: int, out: Path) -> None:
    from fgm.data import prompted

    words = prompted(data)
    if words is None:
        raise UserError(f"format = geneval: {config['recipe']} is no model with prompts; choose format=png or edm")
    required(own, "metadata")
    if own["n"]:
        raise UserError("format = geneval: n follows from the prompts; give samples= for the images of each")
    prompts, each = read_questions(own), whole(own, "samples", 1)
    from dataclasses import replace

    from fgm.evaluation.conditioning import Conditioning
    from fgm.evaluation.exporting import export_geneval

    evaluation, tokens = make_evaluation(config["evaluation"]), words.encode([m.prompt for m in prompts])
    source = sampler_source(config, evaluation, data, len(prompts) * each, seed, device_of_rank())
    asked = Conditioning(lambda indices: indices // each, lambda indices: tokens[indices // each])
    export_geneval(replace(source, conditioning=asked), out, prompts, each, evaluation.batch)
    print(f"{out}: {len(prompts)} prompts with {each} samples each, in GenEval's layout (make score)")


if __name__ == "__main__":
    entry(main, __doc__)
