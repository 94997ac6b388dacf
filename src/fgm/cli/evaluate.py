"""Measure a finished run, or a folder of PNGs.

    python -m fgm.cli.evaluate experiment=<recipe> [n=10000] [eval_seed=1234] [evaluator=<name>]    its exported weights
                                                                                   repeats=3: of as many seeds
    python -m fgm.cli.evaluate samples_dir=<folder> evaluator=<name> [n=] [recursive=true]          what it holds

Evaluators are named in configs/evaluation; evaluator.<key>=<value> sets a value of the one that is asked for, such as a
file of weights. For a folder, data=<name> says what it is compared with, where the evaluator leaves that open.

Samples are measured in shards of shard_size, which stay in <run>/evaluation/<key>/ (of a folder:
<outputs>/evaluation/<key>/) beside results.json, so that the same command goes on where it was cut off. `torchrun
--nproc-per-node 2 -m fgm.cli.evaluate ...` shares the work, with the same bits.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fgm.analysis.tables import summary
from fgm.cli.arguments import read_settings, required, split, whole_or, yes
from fgm.cli.config import parse_arguments
from fgm.cli.evaluators import (
    device_of_rank,
    evaluator_of_folder,
    evaluator_settings,
    make,
    make_evaluation,
    read_evaluator,
    require_evaluator,
)
from fgm.cli.finished import finished_run, sampler_source
from fgm.cli.recording import commit
from fgm.utils.errors import UserError, entry
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, write_json

RUN = {"n": "", "eval_seed": "", "repeats": "1", "evaluator": "", "shard_size": ""}
FOLDER = {
    "samples_dir": "", "evaluator": "", "data": "", "n": "", "recursive": "false", "shard_size": "",
    "outputs": "outputs",
}  # fmt: skip


def main(arguments: list[str]) -> None:
    is_folder = any(argument.startswith("samples_dir=") for argument in arguments)
    (measure_folder if is_folder else measure_run)(arguments)


def measure_run(arguments: list[str]) -> None:
    settings, rest = evaluator_settings(arguments)
    config, own = finished_run(rest, RUN)
    node = config["evaluation"]
    if own["evaluator"]:
        node = read_evaluator(own["evaluator"], settings, *parse_arguments(split(rest, RUN)[1]))
    elif settings:
        raise UserError(f"{settings[0]}: is a setting of evaluator=<name>, and none is given")
    n, seed = whole_or(own, "n", node["n"], 1), whole_or(own, "eval_seed", node["seed"])
    repeats, cut = whole_or(own, "repeats", 1, 1), whole_or(own, "shard_size", None, 1)
    require_evaluator(node)

    def ready() -> tuple[Any, list[Any]]:
        data, evaluation, device = make(config["data"], "data"), make_evaluation(node), device_of_rank()
        return evaluation, [sampler_source(config, evaluation, data, n, seed + i, device) for i in range(repeats)]

    measure(ready, cut, Path(config["run_dir"]))


def measure_folder(arguments: list[str]) -> None:
    settings, rest = evaluator_settings(arguments)
    own = read_settings(rest, FOLDER)
    required(own, "samples_dir", "evaluator")
    node, n = evaluator_of_folder(own["evaluator"], settings, own["data"]), whole_or(own, "n", None, 1)
    cut, recursive = whole_or(own, "shard_size", None, 1), yes(own, "recursive")
    if not Path(own["samples_dir"]).is_dir():
        raise UserError(f"samples_dir = {own['samples_dir']} is no folder: it should hold PNGs")
    require_evaluator(node)

    def ready() -> tuple[Any, list[Any]]:
        from fgm.evaluation.sources.folder import FolderSource

        return make_evaluation(node), [FolderSource(own["samples_dir"], n, recursive)]

    measure(ready, cut, Path(own["outputs"]), own["samples_dir"])


def measure(ready: Callable[[], tuple[Any, list[Any]]], cut: int | None, place: Path, title: str = "") -> None:
    """Every source that ready() gives with its evaluation, on all ranks; rank 0 writes results.json beside each."""
    from fgm.utils.distributed import on_all_ranks, ranks_of_environment

    with ranks_of_environment() as ranks:
        evaluation, sources = on_all_ranks(ranks, ready)
        repeated: list[list[Measurement]] = []
        for source in sources:
            began = time.perf_counter()
            plan, told = on_all_ranks(ranks, partial(evaluation.plan, source, place, cut))
            found = len(plan.shards()) - len(plan.missing())
            repeated.append(evaluation.measure(source, plan, ranks, plain_console()))
            timing = {"wall": round(time.perf_counter() - began, 2), "shards": len(plan.shards()), "found": found}
            if ranks.rank == 0:
                results = repeated[-1] + (spread(repeated) or evaluation.suite.reference_values())
                conclude(told, results, plan, (device_of_rank(), ranks.world_size), timing, title)


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
    told: dict[str, Any],
    results: list[Measurement],
    plan: Any,
    where: tuple[Any, int],
    timing: dict[str, Any],
    title: str,
) -> None:
    """The table for people, and results.json for programs."""
    from fgm.evaluation.provenance import record

    path = plan.directory / "results.json"
    write_json(path, record(told, results, *where, timing) | {"commit": commit()})
    console = plain_console()
    console.print(summary(results, title or str(plan.directory.parents[1])))
    print(f"results and their provenance: {path}")


if __name__ == "__main__":
    entry(main, __doc__)
