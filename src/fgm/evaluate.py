"""Measure a finished run, or a folder of PNGs.

    python -m fgm.evaluate experiment=<recipe> [n=10000] [eval_seed=1234] [evaluator=<name>]    its exported weights
    python -m fgm.evaluate samples_dir=<folder> evaluator=<name> [n=] [recursive=true]          what it holds

Evaluators are named in configs/evaluation; evaluator.<key>=<value> sets a value of the one that is asked for, such as a
file of weights. For a folder, data=<name> says what it is compared with, where the evaluator leaves that open.

Samples are measured in shards of shard_size, which stay in <run>/evaluation/<key>/ (of a folder:
<outputs>/evaluation/<key>/) beside results.json, so that the same command goes on where it was cut off. `torchrun
--nproc-per-node 2 -m fgm.evaluate ...` shares the work, with the same bits.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fgm.arguments import read_settings, required, whole_or, yes
from fgm.config import parse_arguments
from fgm.errors import Refusal, entry
from fgm.evaluators import device_of_rank, evaluator_of_folder, evaluator_settings, make, make_panel, read_evaluator
from fgm.finished import finished_run, sampler_source, split
from fgm.records import write_json

RUN = {"n": "", "eval_seed": "", "evaluator": "", "shard_size": ""}
FOLDER = {
    "samples_dir": "", "evaluator": "", "data": "", "n": "", "recursive": "false", "shard_size": "",
    "outputs": "outputs",
}  # fmt: skip
SHARD = 1000  # samples, unless one batch is larger


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
        raise Refusal(f"{settings[0]}: is a setting of evaluator=<name>, and none is given")
    n, seed = whole_or(own, "n", node["n"], 1), whole_or(own, "eval_seed", node["seed"])
    cut = shard_size(own, node["batch"])

    def ready() -> tuple[Any, Any]:
        panel, data = make_panel(node["panel"]), make(config["data"], "data")
        source = sampler_source(config, data, seed, n, node["batch"], device_of_rank())
        return replace(source, mode=getattr(panel, "mode", "round")), panel

    measure(ready, node["panel"], cut, Path(config["run_dir"]))


def measure_folder(arguments: list[str]) -> None:
    settings, rest = evaluator_settings(arguments)
    own = read_settings(rest, FOLDER)
    required(own, "samples_dir", "evaluator")
    node, n = evaluator_of_folder(own["evaluator"], settings, own["data"]), whole_or(own, "n", None, 1)
    cut, recursive = shard_size(own, 1), yes(own, "recursive")
    if not Path(own["samples_dir"]).is_dir():
        raise Refusal(f"samples_dir = {own['samples_dir']} is no folder: it should hold PNGs")

    def ready() -> tuple[Any, Any]:
        from fgm.evaluation.sources.folder import FolderSource

        return FolderSource(own["samples_dir"], n, recursive), make_panel(node["panel"])

    measure(ready, node["panel"], cut, Path(own["outputs"]), own["samples_dir"])


def shard_size(own: dict[str, str], batch: int) -> int:
    """Whole batches, so that the borders of shards never cut one."""
    size = whole_or(own, "shard_size", batch * max(1, SHARD // batch), 1)
    if size % batch:
        raise Refusal(f"shard_size = {size} must be a multiple of the evaluator's batch, {batch}")
    return size


def measure(
    ready: Callable[[], tuple[Any, Any]], panel_node: dict[str, Any], cut: int, place: Path, title: str = ""
) -> None:
    """The source and the panel that ready() gives, through shards, on all ranks; rank 0 writes results.json."""
    from fgm.evaluation.comm import comm_of_environment, together
    from fgm.evaluation.provenance import definition, key_of
    from fgm.evaluation.shards import Plan, evaluate

    with comm_of_environment() as comm:
        source, panel = together(comm, ready)
        console, told = Console(highlight=False, soft_wrap=True), {"config": panel_node} | panel.identity()
        evaluation, began = definition(source.describe(), told, source.n, cut), time.perf_counter()
        plan = Plan(source.n, cut, place / "evaluation" / key_of(evaluation))
        found = len(plan.shards()) - len(plan.missing())
        measured = evaluate(source, panel, plan, comm, console)
    if comm.rank == 0:
        timing = {"wall": round(time.perf_counter() - began, 2), "shards": len(plan.shards()), "found": found}
        results = measured_as(source, measured) + panel.bounds()
        conclude(evaluation, results, plan, (device_of_rank(), comm.world), timing, title)


def measured_as(source: Any, measured: list[Any]) -> list[Any]:
    return [replace(m, nfe=source.nfe, weights=source.weights) for m in measured]


def conclude(
    evaluation: dict[str, Any],
    results: list[Any],
    plan: Any,
    where: tuple[Any, int],
    timing: dict[str, Any],
    title: str,
) -> None:
    """The table for people, and results.json for programs."""
    from fgm.evaluation.provenance import record
    from fgm.train import commit, summary

    path = plan.directory / "results.json"
    write_json(path, record(evaluation, results, *where, timing) | {"commit": commit()})
    console = Console(soft_wrap=True)
    console.print(summary(results, title or str(plan.directory.parents[1])))
    print(f"results and their provenance: {path}")


if __name__ == "__main__":
    entry(main, __doc__)
