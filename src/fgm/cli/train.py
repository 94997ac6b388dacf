"""Train a teacher, or distil one:  python -m fgm.cli.train experiment=digits_fgm method.t_star=0.9

The same command again resumes, or says that the run is done. -m method.t_star=0.7,0.9 runs a grid, one run after the
other in this process; -m +sweep=t_star runs a study, see sweep.py. --help lists experiments and settings.
"""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console

from fgm.analysis.tables import summary
from fgm.cli import cache_prompts, contract, runs, sweep, teacher
from fgm.cli.build import build_module, build_run
from fgm.cli.command import Command, NoSettings
from fgm.cli.config import require_extras
from fgm.evaluation.plots import save_curves
from fgm.teachers import bundled
from fgm.training.checkpointing import export_weights
from fgm.training.loggers import log_results
from fgm.training.module import TrainingModule
from fgm.training.trainer import count_devices, fit
from fgm.utils.distributed import leave_job
from fgm.utils.errors import UserError, rank, resumable
from fgm.utils.files import require_place
from fgm.utils.locks import locked, require_free
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, read_curves, write_json


def run(config: dict[str, Any], settings: NoSettings) -> float | None:
    """Train; Hydra's sweepers optimise what this returns."""
    resumable()
    several = count_devices(config["trainer"]["devices"]) * config["strategy"].get("nodes", 1) > 1
    left = None if several else leave_job()
    if left:
        print(left, flush=True)
    if HydraConfig.get().mode == RunMode.MULTIRUN and several:
        raise UserError(
            "-m is for one device, trainer.devices=1: every further process would start the whole grid. Start a command "
            "for each value, or let hydra/launcher=submitit_slurm do it"
        )
    return sweep.run_point(config, train) if "study" in config else train(config)


def train(config: dict[str, Any], wait: bool = False) -> float | None:
    """Run one config to its end, or say that it is done; return its primary metric, see primary_metric.

    Args:
        wait: for another process that trains the same run, instead of refusing.

    Raises:
        UserError: bad input; nothing was written.
    """
    console, run_dir = plain_console(quiet=rank() > 0), Path(config["run_dir"])
    if runs.is_done(config, run_dir):
        console.print(f"{run_dir} is done: its results.json, samples and weights are there (delete it to run again)")
        return primary_metric(run_dir)
    require_ready(config, run_dir, wait)
    console.print(f"{config['experiment']}: {run_dir}")
    config = runs.with_precision(config, run_dir)
    run = build_run(config, console)  # first: an impossible evaluation is refused before a teacher is trained
    data = contract.require_fit(config, run.evaluation)
    train_teacher(config["teacher"])
    module, built = initial_module(config, data, console)
    contract.require_built(config, module)
    waiting = (lambda other: console.print(f"waiting for {run_dir}: {other} trains it")) if wait else None
    with locked(run_dir, waiting) if rank() == 0 else nullcontext():
        if runs.is_done(config, run_dir):  # by now
            return primary_metric(run_dir)
        if rank() == 0:
            runs.write_yaml(config, run_dir / "config.yaml")
        timing, trained = fit(module, run), time.perf_counter()
        export_weights(module, run_dir)
        results = run.evaluation_callback.measure_all(module, known_measurements(config))
        run.evaluation_callback.show(module.samplers(), module, run_dir / "samples" / "final.png")
        if rank() == 0:
            timing["train_s"] += built
            timing["wall_s"] = sum(timing.values()) + time.perf_counter() - trained
            finish(config, module, run, results, timing)
    return primary_metric(run_dir) if rank() == 0 else None


def initial_module(config: dict[str, Any], data: Any, console: Console) -> tuple[TrainingModule, float]:
    """Return the module and the seconds that it took: initial weights may be trained, by fit or on ode_pairs."""
    pairs, began = config["method"].get("ode_pairs"), time.perf_counter()
    if pairs:
        console.print(f"the generator starts from {pairs} samples of its teacher's ODE: a minute or more")
    return build_module(config, data), time.perf_counter() - began


def require_ready(config: dict[str, Any], run_dir: Path, wait: bool) -> None:
    """Check what a run needs beside its config, within seconds: a place, packages, a teacher, prompts, devices."""
    require_place(run_dir)
    if rank() == 0 and not wait:  # rank 0 holds it for the others
        require_free(run_dir)
    require_extras(config)
    teacher.require(config["teacher"])
    cache_prompts.require(config)
    runs.require_device(config["trainer"])


def train_teacher(node: dict[str, Any] | None) -> None:
    """Train the run that a `teacher` node names unless it is done."""
    config = teacher.run_named(node)
    if config and not runs.is_done(config, Path(config["run_dir"])):
        train(config, wait=True)


def finish(config: dict[str, Any], module: Any, run: Any, results: list[Measurement], timing: dict[str, float]) -> None:
    """Write results.json, which marks the run as done, and the row if it is to be recorded."""
    samples = run.run_dir / "samples"
    save_curves(run.run_dir / "metrics.csv", samples / "curves.png")
    row = runs.provenance(config) | {"precision": run.precision, "images_seen": module.images_seen}
    row |= {name: round(seconds, 1) for name, seconds in timing.items()} | {"results": [m.row() for m in results]}
    if "study" in config:
        run.evaluation_callback.draw(module.samplers()[0], module, samples / "drawn.png")
        row |= config["study"] | {"curves": read_curves(run.run_dir / "metrics.csv")}
    elif config["differs"]:
        row |= {"differs": config["differs"]}
    write_json(run.run_dir / runs.RESULTS, row)
    log_results(module.loggers, results, samples / "final.png", int(module.step) - 1)
    run.console.print(summary(results, config["experiment"]))
    run.console.print(f"pictures in {samples}, weights and results in {run.run_dir} (make record keeps its row)")
    if config["record"] or "study" in config:
        run.console.print(f"row in {runs.record(config)} (make table)")


def primary_metric(run_dir: Path) -> float:
    """Return the first measurement of a finished run's own samples."""
    rows = json.loads((run_dir / runs.RESULTS).read_text())["results"]
    return next((row["value"] for row in rows if row["weights"] == "ema"), rows[0]["value"])


def known_measurements(config: dict[str, Any]) -> list[Measurement]:
    """Return the teacher's recorded measurements if its run had the same evaluation, guidance and noise."""
    node = config["teacher"] or {}
    if "t_star" not in config["method"]:
        return []
    if node.get("_target_") == "fgm.cli.teacher.from_bundled":
        known = bundled.run(node["experiment"])
        other, rows = known["config"], known["row"]["results"]
    else:
        run_dir = teacher.run_dir(config["teacher"])
        if run_dir is None:
            return []
        other, rows = (
            runs.read_yaml(run_dir / "config.yaml"),
            json.loads((run_dir / runs.RESULTS).read_text())["results"],
        )
    if final_part(other) != final_part(config) or other["method"].get("guidance", 1.0) != node["guidance"]:
        return []
    return [Measurement.from_row(row) for row in rows if row["weights"] == "teacher"]


def final_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return what matters of an evaluation at the end of a run."""
    return {key: value for key, value in config["evaluation"].items() if key not in ("every", "monitor", "mode")}


def run_record(config: dict[str, Any], settings: NoSettings) -> None:
    """Add a finished run to <experiments>/<experiment>/runs.jsonl.

    Raises:
        UserError: the run is not finished.
    """
    run_dir = Path(config["run_dir"])
    if not runs.is_done(config, run_dir):
        require_free(run_dir)
        raise UserError(f"{run_dir} holds no finished run: make train EXP={config['experiment']} first")
    print(f"row in {runs.record(config)} (make table)")


main, record = Command("train", run), Command("record", run_record)

if __name__ == "__main__":
    main.main()
