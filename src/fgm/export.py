"""python -m fgm.export experiment=<recipe> [format=png|edm|geneval] [n=] [eval_seed=] [out=<folder>]: samples as PNGs.

They are the very samples that `make eval` measures, bit for bit: a folder that is exported with the same n and
eval_seed gets the same numbers. format=geneval is for models with prompts; it takes metadata=<file>.jsonl and
samples=4, and vocabulary=shapes for ShapeEval's words. The layouts are in evaluation/layouts.py.
"""

from pathlib import Path
from typing import Any

from fgm.arguments import choice, required, whole, whole_or
from fgm.errors import Refusal, entry
from fgm.evaluation.layouts import LAYOUTS, require_empty
from fgm.evaluators import device_of_rank, make
from fgm.finished import finished_run, sampler_source
from fgm.score import read_questions

OWN = {
    "format": "png", "n": "", "eval_seed": "", "out": "", "metadata": "", "samples": "4", "vocabulary": "geneval",
}  # fmt: skip


def main(arguments: list[str]) -> None:
    config, own = finished_run(arguments, OWN)
    layout, evaluation = choice(own, "format", LAYOUTS), config["evaluation"]
    seed, n = whole_or(own, "eval_seed", evaluation["seed"]), whole_or(own, "n", evaluation["n"], 1)
    out = Path(own["out"] or f"{config['run_dir']}/export/{layout}")
    require_empty(out)
    data = make(config["data"], "data")
    if len(data.shape) != 3:
        raise Refusal(
            f"{config['recipe']} draws points of shape {tuple(data.shape)}, and PNGs hold images: make sample"
        )
    if layout == "geneval":
        export_prompts(config, data, own, seed, out)
    else:
        export_flat(config, data, (seed, n), layout, out)


def export_flat(config: dict[str, Any], data: Any, numbers: tuple[int, int], layout: str, out: Path) -> None:
    from fgm.evaluation.exporting import export_images

    batch = config["evaluation"]["batch"]
    source = sampler_source(config, data, *numbers, batch, device_of_rank())
    export_images(source, out, layout, batch)
    print(
        f"{out}: {source.n} PNGs in layout {layout}, the samples that make eval measures with the same n and eval_seed"
    )


def export_prompts(config: dict[str, Any], data: Any, own: dict[str, str], seed: int, out: Path) -> None:
    prompted = getattr(data, "data", data)  # a pool's own data
    if not hasattr(prompted, "encode"):
        raise Refusal(f"format = geneval: {config['recipe']} is no model with prompts; choose format=png or edm")
    required(own, "metadata")
    if own["n"]:
        raise Refusal("format = geneval: n follows from the prompts; give samples= for the images of each")
    prompts, each = read_questions(own), whole(own, "samples", 1)
    from dataclasses import replace

    from fgm.evaluation.exporting import export_geneval

    batch, tokens = config["evaluation"]["batch"], prompted.encode([metadata.prompt for metadata in prompts])
    source = sampler_source(config, data, seed, len(prompts) * each, batch, device_of_rank())
    asked = replace(source, condition=lambda indices: tokens[indices // each], labelled=False)
    export_geneval(asked, out, prompts, each, batch)
    print(f"{out}: {len(prompts)} prompts with {each} samples each, in GenEval's layout (make score)")


if __name__ == "__main__":
    entry(main, __doc__)
