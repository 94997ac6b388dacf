"""Measure a finished run, or a folder of PNGs.

    python -m fgm.cli.evaluate experiment=digits_fgm [n=10000] [eval_seed=1234] [evaluator=fid_edm] [repeats=3]
    python -m fgm.cli.evaluate samples_dir=<folder> evaluator=digits [n=] [recursive=true]

Evaluators are the files of configs/evaluation; evaluator.<key>=<value> sets a value of the chosen one, such as a file
of weights. For a folder, data=<name> says what it is compared with, if the evaluator leaves that open. repeats=3
measures samples of as many seeds.

Values and their provenance are written to <run>/evaluation/<key>/results.json (of a folder: <outputs>/evaluation/...).
`torchrun --nproc-per-node 2 -m fgm.cli.evaluate ...` shares the work, with the same bits.

    python -m fgm.cli.main reference data=<name> out=<file>.npz [split=train] [n=]     the moments of features

They come from a data set of configs/data, or with samples_dir= from a folder; the file has EDM's keys, mu (d,) and
sigma (d, d), float64, and n, the number of images behind them.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hydra.core.hydra_config import HydraConfig
from pydantic import NonNegativeInt, PositiveInt

from fgm.analysis.tables import summary
from fgm.cli.checks import check, make
from fgm.cli.command import Command
from fgm.cli.config import CONFIGS
from fgm.cli.loading import sampler_source
from fgm.cli.runs import commit, device_of_rank, finished
from fgm.evaluation.evaluator import key_of, record
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.frechet import Moments
from fgm.evaluation.sources import DatasetSource, FolderSource, batches
from fgm.training.contract import Contract, require
from fgm.utils.distributed import on_all_ranks, ranks_of_environment
from fgm.utils.errors import UserError
from fgm.utils.files import replacing
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, write_json


@dataclass(frozen=True)
class Settings:
    """n and eval_seed are the evaluator's unless given."""

    n: PositiveInt | None = None
    eval_seed: NonNegativeInt | None = None
    repeats: PositiveInt = 1
    samples_dir: str | None = None
    recursive: bool = False
    evaluator: Any = None


def run(config: dict[str, Any], settings: Settings) -> None:
    node = settings.evaluator
    if node is not None:
        check(node, "evaluator")
    if settings.samples_dir:
        measure_folder(config, settings)
        return
    config = finished(config)
    node = node or config["evaluation"]
    n, seed = settings.n or node["n"], node["seed"] if settings.eval_seed is None else settings.eval_seed

    def ready() -> tuple[Any, list[Any]]:
        data, device = make(config["data"], "data"), device_of_rank()
        evaluation = make_evaluation(node, data, n)
        seeds = range(seed, seed + settings.repeats)
        return evaluation, [sampler_source(config, evaluation, data, n, each, device) for each in seeds]

    measure(ready, Path(config["run_dir"]))


def measure_folder(config: dict[str, Any], settings: Settings) -> None:
    node, folder = settings.evaluator, str(settings.samples_dir)
    if node is None:
        raise UserError("evaluator= is missing: give evaluator=<name> of configs/evaluation")
    require_comparison(node, HydraConfig.get().overrides.task)
    if not Path(folder).is_dir():
        raise UserError(f"samples_dir = {folder} is no folder: it should hold PNGs")

    def ready() -> tuple[Any, list[Any]]:
        source = FolderSource(folder, settings.n, settings.recursive)
        return make_evaluation(node, n=source.n), [source]

    measure(ready, Path(config["outputs"]), folder)


def require_comparison(node: dict[str, Any], overrides: list[str]) -> None:
    """Refuse a folder whose evaluator takes something from data, if neither data nor its own setting is given."""
    given = [override.lstrip("+") for override in overrides]
    name = next(o.partition("=")[2] for o in given if o.startswith("evaluation@evaluator="))
    source, reference = (CONFIGS / "evaluation" / f"{name}.yaml").read_text(), "evaluator.suite.reference="
    if any(o.startswith("data=") for o in given):
        return
    if any(o.startswith(reference) for o in given):
        node["suite"]["data"] = None
        return
    own = {o.partition("=")[0].rpartition(".")[2] for o in given if o.startswith("evaluator.")}
    if set(re.findall(r"(\w+): \$\{data[.}]", source)) - own:
        raise UserError(
            f"evaluator = {name} compares with data, and a folder does not say with which: give data=<name> of "
            f"configs/data" + (f", or {reference}<file>.npz" if "reference:" in source else "")
        )


def make_evaluation(node: dict[str, Any], data: Any = None, n: int | None = None) -> Any:
    """Make an evaluator; error messages name `evaluator.<key>` in place of `evaluation.<key>`.

    Args:
        data: of the samples, if a run's are measured.
        n: samples that are measured; None to measure none.
    """
    try:
        evaluation = make(node, "evaluator")
        if n is not None:
            require(Contract(data, evaluation=evaluation))
            evaluation.require_samples(n)
        return evaluation
    except UserError as error:
        raise UserError(re.sub(r"(?<![\w./])evaluation\.", "evaluator.", str(error))) from error


def measure(ready: Callable[[], tuple[Any, list[Any]]], place: Path, title: str = "") -> None:
    """Measure every source that ready() returns with its evaluator, on all ranks; rank 0 writes a results.json each."""
    with ranks_of_environment() as ranks:
        evaluation, sources = on_all_ranks(ranks, ready)
        repeated: list[list[Measurement]] = []
        for source in sources:
            began = time.perf_counter()
            repeated.append(evaluation.measure(source, ranks, plain_console()))
            timing = {"wall": round(time.perf_counter() - began, 2)}
            if ranks.rank == 0:
                results = repeated[-1] + (spread(repeated) or evaluation.suite.reference_values())
                where = device_of_rank(), ranks.world_size
                conclude(evaluation.describe(source), results, place, where, timing, title)


def spread(repeated: list[list[Measurement]]) -> list[Measurement]:
    """Over the seeds so far, of what each of them measured: see over_seeds; none of one seed."""
    if len(repeated) < 2:
        return []
    first, *others = ({m.metric: m for m in measured} for measured in repeated)
    return [over_seeds([m, *(o[name] for o in others)]) for name, m in first.items() if all(name in o for o in others)]


def over_seeds(same: list[Measurement]) -> Measurement:
    """Mean, standard deviation and least value, which EDM's protocol reports."""
    values, first = [m.value for m in same], same[0]
    extra = {"sd": stdev(values), "min": min(values), "values": values}
    protocol = f"mean of {len(values)} seeds of samples; {first.protocol}"
    return Measurement(first.metric, mean(values), first.n, protocol, first.nfe, first.weights, extra)


def conclude(
    definition: dict[str, Any],
    results: list[Measurement],
    place: Path,
    where: tuple[Any, int],
    timing: dict[str, Any],
    title: str,
) -> None:
    """Print a table, and write results.json."""
    path = place / "evaluation" / key_of(definition) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record(definition, results, *where, timing) | {"commit": commit()})
    console = plain_console()
    console.print(summary(results, title or str(place)))
    print(f"results and their provenance: {path}")


@dataclass(frozen=True)
class ReferenceSettings:
    samples_dir: str | None = None
    split: str = "train"
    n: PositiveInt | None = None
    recursive: bool = False
    out: str | None = None
    evaluator: Any = None


def run_reference(config: dict[str, Any], settings: ReferenceSettings) -> None:
    choices, node = HydraConfig.get().runtime.choices, settings.evaluator or config["evaluation"]
    check(node, "evaluator")
    if settings.out is None:
        raise UserError("out= is missing: give out=<file>.npz")
    out, name = Path(settings.out), choices.get("evaluation@evaluator") or choices["evaluation"]
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise UserError(f"out = {out} must end with .npz, in a folder that exists")
    chosen = any(override.startswith("data=") for override in HydraConfig.get().overrides.task)
    if chosen == bool(settings.samples_dir):
        raise UserError("give data=<name> or samples_dir=<folder>, one of the two")
    source: Any
    if settings.samples_dir:
        source = FolderSource(settings.samples_dir, settings.n, settings.recursive)
    else:
        source = DatasetSource.of_data(make(config["data"], "data"), choices["data"], settings.split, settings.n)
    suite = make_evaluation(node).suite
    if not isinstance(suite, FeatureMetrics):
        raise UserError(f"evaluator = {name} has no features; choose one that has, such as digits")
    features = (suite.features(samples.x, None)["features"] for _, samples in batches(source, 1000))
    moments = Moments.of_batches(features)
    with replacing(out) as temporary:
        moments.save(temporary)
    print(f"{out}: mu and sigma of {moments.n} images, {len(moments.mean)} features of {name}")


main = Command("eval", run, Settings, groups={"evaluator": "evaluation"})
reference = Command("reference", run_reference, ReferenceSettings, groups={"evaluator": "evaluation"})

if __name__ == "__main__":
    main.main()
