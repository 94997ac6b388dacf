"""A sweep's points one after another: what is done is skipped, what fails is a row, and a stop loses nothing."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fgm.analysis.sweeps import value_of
from fgm.cli import teacher
from fgm.cli.runs import is_done, origin, runs_file
from fgm.cli.studies.points import Point
from fgm.cli.studies.process import LOG, Outcome, Processes
from fgm.utils.errors import RESUMABLE, UserError
from fgm.utils.files import require_place
from fgm.utils.records import append_row, read_rows

Rows = dict[str, dict[str, Any]]


def run_all(points: Sequence[Point], retry: bool, console: Console) -> None:
    """
    Raises:
        UserError: a teacher could not be trained, the recipe does not measure what decides, or all points failed.
        SystemExit: RESUMABLE, when the sweep was asked to stop.
    """
    for place in (runs_file(points[0].config).parent, Path(points[0].config["outputs"])):
        require_place(place)
    rows, processes = known_rows(points), Processes()
    pending = [point for point in points if not finished(point, rows, retry)]
    console.print(f"{points[0].study}: {len(points)} points, {len(points) - len(pending)} of them done")
    train_teachers(pending, processes, console)
    seconds: list[float] = []
    with bar(console) as progress:
        task = progress.add_task("", total=len(pending))
        for i, point in enumerate(pending, 1):
            progress.update(task, description=f"point {i} of {len(pending)}: {point.label}{left(seconds, i, pending)}")
            rows[point.digest], took = run_point(point, processes)
            seconds.append(took)
            told = f"point {i} of {len(pending)}: {point.label}: {said(point, rows[point.digest])}, {took:.0f} s"
            progress.console.print(told + left(seconds, i + 1, pending))
            progress.advance(task)
    conclude(points, rows, console)


def require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a sweep is one process, which starts one for each point: give trainer.devices, without torchrun"
        )


def known_rows(points: Sequence[Point]) -> Rows:
    """The newest row of each config digest, of this definition of the study."""
    rows, part = read_rows(runs_file(points[0].config)), points[0].config["study"]["sweep_digest"]
    return {row["config_digest"]: row for row in rows if row.get("sweep_digest") == part}


def finished(point: Point, rows: Rows, retry: bool) -> bool:
    row = rows.get(point.digest)
    return row is not None and not (retry and "failed" in row)


def train_teachers(points: Sequence[Point], processes: Processes, console: Console) -> None:
    """Each teacher that the points name and that is missing, once and before them all; no part of the study itself."""
    for node in {json.dumps(node): node for node in (point.config["teacher"] for point in points)}.values():
        config = teacher.run_named(node)
        if config is None or not node["train"] or is_done(config, Path(config["run_dir"])):
            continue
        console.print(f"the teacher first: {config['run_dir']}")
        outcome = processes.run(
            config | {"logger": {"csv": {"_target_": "fgm.training.loggers.AppendingCSVLogger", "_partial_": True}}}
        )
        stop_if_asked(outcome)
        if outcome.failed:
            raise UserError(f"the teacher failed: {outcome.failed} ({config['run_dir']}/{LOG})")


def run_point(point: Point, processes: Processes) -> tuple[dict[str, Any], float]:
    """Its row, and the seconds that it took."""
    outcome = processes.run(point.config)
    stop_if_asked(outcome)
    return record(point, outcome), outcome.seconds


def stop_if_asked(outcome: Outcome) -> None:
    if outcome.stopped:
        print("stopped: the same command again goes on", file=sys.stderr)
        sys.exit(RESUMABLE)


def record(point: Point, outcome: Outcome) -> dict[str, Any]:
    """The point's row, written by its run; or now, where that run was made before the study asked, or failed."""
    config, known = point.config, known_rows([point]).get(point.digest, {"failed": ""})
    if outcome.failed:
        row = origin(config) | {"wall_s": round(outcome.seconds, 1), "failed": outcome.failed, "results": []}
    elif "failed" in known:
        row = json.loads((Path(config["run_dir"]) / "results.json").read_text())
    else:
        return known
    append_row(runs_file(config), row | config["study"])
    return row | config["study"]


def said(point: Point, row: dict[str, Any]) -> str:
    """
    Raises:
        UserError: a finished run has not measured the metric that decides.
    """
    if "failed" in row:
        return f"failed, {row['failed']}"
    value = value_of(row, point.metric)
    if value is None:
        measured = dict.fromkeys(result["metric"] for result in row["results"])
        raise UserError(
            f"{row['recipe']} does not measure {point.metric}: give metrics=<one of {', '.join(measured)}>:min or :max"
        )
    return f"{point.metric} {value:.4g}"


def conclude(points: Sequence[Point], rows: Rows, console: Console) -> None:
    """
    Args:
        points: of the whole sweep, of which a sweeper may have chosen some.

    Raises:
        UserError: all that were run have failed.
    """
    tried = [point for point in points if point.digest in rows]
    if tried and all("failed" in rows[point.digest] for point in tried):
        raise UserError(
            f"all {len(tried)} points of {tried[0].study} failed, the first one: {rows[tried[0].digest]['failed']} "
            f"({tried[0].config['run_dir']}/{LOG}); retry=true runs them again"
        )
    console.print(f"rows in {runs_file(points[0].config)} (make table)")


def left(seconds: Sequence[float], i: int, pending: Sequence[Point]) -> str:
    """Before point i is run."""
    minutes = fmean(seconds) * (len(pending) - i + 1) / 60 if seconds else 0
    return f"; about {minutes:.0f} min left" if minutes >= 1 else ""


def bar(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
