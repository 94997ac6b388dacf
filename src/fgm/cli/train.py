"""python -m fgm.cli.train experiment=<recipe> [key=value ...]: train, measure, record. The same command again resumes.

experiment=digits_fgm           a recipe of configs/experiment; make help lists them
seed=1 method.t_star=0.9        any value of the config, by its dotted name
time=uniform                    any noun, by its file's name in configs/<group>
run_dir=... outputs=...         where the run lives; outputs/<recipe>[__<override>...] unless given
"""

import json
import time
from pathlib import Path
from typing import Any

from fgm.analysis.tables import summary
from fgm.cli import cache_prompts, teacher
from fgm.cli.config import digest, parse_arguments, read_recipe, require_extras, without_places
from fgm.cli.evaluators import require_device
from fgm.cli.recording import diary, provenance
from fgm.cli.run_config import read_yaml, write_yaml
from fgm.evaluation.preflight import require_files
from fgm.teachers import bundled
from fgm.utils.errors import UserError, entry, rank, resumable
from fgm.utils.files import require_place
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, append_row, read_curves, write_json


def main(arguments: list[str]) -> None:
    resumable()
    train(read_recipe(*parse_arguments(arguments)))


def train(config: dict[str, Any]) -> None:
    """Run one config to its end, or say that it is done.

    Raises:
        UserError: bad input; nothing was written.
    """
    console, run_dir = plain_console(quiet=rank() > 0), Path(config["run_dir"])
    if is_done(config, run_dir):
        console.print(f"{run_dir} is done: its results.json, samples and weights are there (delete it to run again)")
        return
    require_place(run_dir)
    require_place(diary(config).parent)
    require_extras(config)
    teacher.require(config["teacher"])
    cache_prompts.require(config)
    require_files(config["evaluation"])
    console.print(f"{config['recipe']}: {run_dir}")
    from fgm.cli.build import build_module, build_run  # torch and Lightning, from here on

    require_device(config["trainer"])
    run = build_run(config, console)  # first: an evaluation that cannot be is said before a teacher is trained
    train_teacher(config["teacher"])
    module = build_module(config)
    if rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_yaml(config, run_dir / "config.yaml")
    fit_and_record(module, run, config)


def train_teacher(node: dict[str, Any] | None) -> None:
    """The run that a `teacher` node names, where it is not done yet."""
    config = teacher.run_named(node)
    if config and not is_done(config, Path(config["run_dir"])):
        train(config)


def fit_and_record(module: Any, run: Any, config: dict[str, Any]) -> None:
    """Train, export, measure, and append the row. A run's results.json comes last, and marks it done.

    All ranks train and measure; the first one writes.
    """
    from fgm.evaluation.curves import picture_of_curves
    from fgm.training.checkpointing import export_weights
    from fgm.training.evaluation import final_measurements
    from fgm.training.loggers import log_results
    from fgm.training.trainer import fit

    timing, trained = fit(module, run), time.perf_counter()
    export_weights(module, run.run_dir)
    results = final_measurements(run.measuring, module, known_measurements(config))
    final = run.run_dir / "samples" / "final.png"
    run.measuring.show(module.samplers(), module, final)
    if rank():
        return
    picture_of_curves(run.run_dir / "metrics.csv", final.with_name("curves.png"))
    timing["wall_s"] = sum(timing.values()) + time.perf_counter() - trained
    row = provenance(config) | {"images_seen": module.images_seen}
    row |= {name: round(seconds, 1) for name, seconds in timing.items()} | {"results": [m.row() for m in results]}
    row |= of_study(config, run, module) or ({"differs": config["differs"]} if config.get("differs") else {})
    append_row(diary(config), row)
    write_json(run.run_dir / "results.json", row)
    log_results(module.loggers, results, final, int(module.step) - 1)
    run.console.print(summary(results, config["recipe"]))
    run.console.print(f"pictures in {run.run_dir}/samples, row in {diary(config)} (make table)")


def of_study(config: dict[str, Any], run: Any, module: Any) -> dict[str, Any]:
    """What a study's row holds besides; its samples are drawn for the report."""
    if "study" not in config:
        return {}
    run.measuring.draw(module.samplers()[0], module, run.run_dir / "samples" / "drawn.png")
    return config["study"] | {"curves": read_curves(run.run_dir / "metrics.csv")}


def known_measurements(config: dict[str, Any]) -> list[Measurement]:
    """What a distillation need not measure: its teacher's own run has, guided alike and on the very same noise."""
    node = config["teacher"] or {}
    if "t_star" not in config["method"]:
        return []
    if node.get("_target_") == "fgm.cli.teacher.from_bundled":
        known = bundled.run(node["recipe"])
        other, rows = known["config"], known["row"]["results"]
    else:
        run_dir = teacher.run_dir(config["teacher"])
        if run_dir is None:
            return []
        other, rows = read_yaml(run_dir / "config.yaml"), json.loads((run_dir / "results.json").read_text())["results"]
    if final_part(other) != final_part(config) or other["method"].get("guidance", 1.0) != node["guidance"]:
        return []
    return [Measurement.from_row(row) for row in rows if row["weights"] == "teacher"]


def final_part(config: dict[str, Any]) -> dict[str, Any]:
    """What of the evaluation matters at the end of a run."""
    return {key: value for key, value in config["evaluation"].items() if key not in ("every", "monitor", "mode")}


def is_done(config: dict[str, Any], run_dir: Path) -> bool:
    """Whether run_dir holds the finished run of this very config.

    Raises:
        UserError: it holds another config's run.
    """
    if not (run_dir / "config.yaml").exists():
        return False
    other = read_yaml(run_dir / "config.yaml")
    same = on_the_devices_of(config, other)
    if digest(same) != digest(config):
        changed = [
            key for key in without_places(config) if without_places(same.get(key)) != without_places(config[key])
        ]
        devices = digest(on_the_devices_of(config | {"allow_world_size_change": True}, other)) == digest(config)
        raise UserError(
            f"{run_dir} holds a run of another config (differs in {', '.join(changed)}): delete it or give run_dir="
            + ("; or go on with these devices: allow_world_size_change=true" if devices else "")
        )
    return (run_dir / "results.json").exists()


def on_the_devices_of(config: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The other config, on config's number of devices and by its strategy, where config accepts that they change."""
    if not config["allow_world_size_change"] or not {"trainer", "strategy"} <= other.keys():
        return other
    devices = config["trainer"]["devices"]
    return other | {"strategy": config["strategy"], "trainer": other["trainer"] | {"devices": devices}}


if __name__ == "__main__":
    entry(main, __doc__)
