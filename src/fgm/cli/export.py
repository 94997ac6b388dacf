"""python -m fgm.cli.export experiment=<name> [format=png|edm|geneval] [n=] [eval_seed=] [out=]: samples as PNGs.
format=diffusers [lora=merge|keep] [dtype=float32] [link=false] [out=<folder>]: the generator itself, as a pipeline.

The PNGs are the very samples that `make eval` measures, bit for bit: a folder that is exported with the same n and
eval_seed gets the same numbers. format=geneval is for models with prompts; it takes metadata=<file>.jsonl and
samples=4, and vocabulary=shapes for ShapeEval's words. The layouts are in evaluation/sources.py.

The pipeline is a StableDiffusion3Pipeline's directory for stock diffusers, with a model card that says how to call it
(publish.py). lora=keep leaves an adapter beside the teacher's weights, link=true links to the teacher's files.

python -m fgm.cli.main bundle experiment=<name> [evaluator=<name>]: add a run's weights to those that come with the suite.
They are rounded to bfloat16 and then evaluated, by the experiment's evaluation or the given evaluator, so that a
distillation from them with the same evaluation need not evaluate them again. fgm.teachers.bundled lists the files.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from safetensors.torch import load_file, save

from fgm.cli.checks import check, make
from fgm.cli.command import Command
from fgm.cli.evaluate import make_evaluation
from fgm.cli.loading import sampler_source, weights_file
from fgm.cli.runs import BUNDLED_WEIGHTS, RESULTS, device_of_rank, finished
from fgm.cli.score import prompts_of
from fgm.evaluation.geneval.folder import export_geneval
from fgm.evaluation.sampling import Conditioning
from fgm.evaluation.sources import export_images, require_empty
from fgm.teachers import bundled
from fgm.utils.errors import UserError
from fgm.utils.files import replacing, require_place, sha256_of
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, write_json

LARGEST = 8_000_000  # bytes of bundled weights


@dataclass(frozen=True)
class Settings:
    """n and eval_seed are the evaluation's unless given."""

    format: Literal["png", "edm", "geneval", "diffusers"] = "png"
    n: PositiveInt | None = None
    eval_seed: NonNegativeInt | None = None
    out: str | None = None
    metadata: str | None = None
    samples: PositiveInt = 4
    vocabulary: Literal["geneval", "shapes"] = "geneval"
    lora: Literal["merge", "keep"] = "merge"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    link: bool = False


def run(config: dict[str, Any], settings: Settings) -> None:
    config, layout = finished(config), settings.format
    evaluation = config["evaluation"]
    seed = evaluation["seed"] if settings.eval_seed is None else settings.eval_seed
    out = Path(settings.out or f"{config['run_dir']}/export/{layout}")
    require_place(out)
    require_empty(out)
    if layout == "diffusers":
        export_pipeline(config, settings, out)
        return
    data = make(config["data"], "data")
    if len(data.shape) != 3:
        raise UserError(
            f"{config['experiment']} draws points of shape {tuple(data.shape)}, and PNGs hold images: make sample"
        )
    if layout == "geneval":
        export_prompts(config, data, settings, seed, out)
        return
    evaluator = make(evaluation, "evaluation")
    source = sampler_source(config, evaluator, data, settings.n or evaluation["n"], seed, device_of_rank())
    export_images(source, out, layout, evaluator.batch)
    print(
        f"{out}: {source.n} PNGs in layout {layout}, the samples that make eval measures with the same n and eval_seed"
    )


def export_pipeline(config: dict[str, Any], settings: Settings, out: Path) -> None:
    from fgm.cli.publish import sd3_run, write_pipeline

    merge, sd3 = settings.lora == "merge", sd3_run(config)
    if not merge and not sd3.adapters:
        raise UserError(f"lora = keep: {config['experiment']} trained whole networks; leave it out")
    write_pipeline(sd3, out, merge, settings.dtype, settings.link)
    print(f"{out}: a StableDiffusion3Pipeline for stock diffusers; its README.md says how to call it")


def export_prompts(config: dict[str, Any], data: Any, settings: Settings, seed: int, out: Path) -> None:
    words, each = data.prompts, settings.samples
    if words is None:
        raise UserError(f"format = geneval: {config['experiment']} is no model with prompts; choose format=png or edm")
    if not settings.metadata:
        raise UserError("metadata= is missing: give metadata=...")
    if settings.n:
        raise UserError("format = geneval: n follows from the prompts; give samples= for the images of each")
    prompts = prompts_of(settings.metadata, settings.vocabulary)
    evaluation, tokens = make(config["evaluation"], "evaluation"), words.encode([m.prompt for m in prompts])
    source = sampler_source(config, evaluation, data, len(prompts) * each, seed, device_of_rank())
    conditioning = Conditioning(lambda indices: indices // each, lambda indices: tokens[indices // each])
    export_geneval(replace(source, conditioning=conditioning), out, prompts, each, evaluation.batch)
    print(f"{out}: {len(prompts)} prompts with {each} samples each, in GenEval's layout (make score)")


@dataclass(frozen=True)
class BundleSettings:
    evaluator: Any = None


def run_bundle(config: dict[str, Any], settings: BundleSettings) -> None:
    config = finished(config)
    if BUNDLED_WEIGHTS in config:
        raise UserError(f"{config['run_dir']} holds no finished run: make train EXP={config['experiment']}")
    if settings.evaluator:
        check(settings.evaluator, "evaluator")
        config = config | {"evaluation": settings.evaluator}
    file = bundled.weights(config["experiment"])
    with replacing(file) as rounded:
        round_weights(weights_file(config), rounded)
        results = measured(config | {BUNDLED_WEIGHTS: str(rounded)})
    row = json.loads((Path(config["run_dir"]) / RESULTS).read_text())
    content = {"sha256": sha256_of(file), "row": row | {"results": [m.row() for m in results]}, "config": config}
    write_json(file.with_suffix(".json"), content)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, measured; commit it with {file.stem}.json")


def round_weights(trained: Path, file: Path) -> None:
    """Write the weights in bfloat16.

    Raises:
        UserError: the file would be too large for a repository.
    """
    state = load_file(trained)
    rounded = save({name: w.bfloat16() if w.dtype == torch.float32 else w for name, w in state.items()})
    if len(rounded) > LARGEST:
        raise UserError(f"{trained}: {len(rounded) / 1e6:.1f} MB in bfloat16, and at most 8 MB come with the suite")
    file.write_bytes(rounded)


def measured(config: dict[str, Any]) -> list[Measurement]:
    """Evaluate the rounded weights as make eval does."""
    evaluation, data = make_evaluation(config["evaluation"]), make(config["data"], "data")
    source = sampler_source(config, evaluation, data, evaluation.n, evaluation.seed, device_of_rank())
    return evaluation.measure(source, console=plain_console())


main = Command("export", run, Settings)
bundle = Command("bundle", run_bundle, BundleSettings, groups={"evaluator": "evaluation"})

if __name__ == "__main__":
    main.main()
