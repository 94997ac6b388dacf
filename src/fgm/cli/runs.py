"""Run directories: the config of a run, whether it is done, and what is recorded of it.

A run may come from anybody. Its config is data: plain values, and every _target_ in it must be named in the suite's
configs, or by the user, before it is called.
"""

import json
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fgm.cli.checks import targets
from fgm.cli.config import CONFIGS, changes, digest, plain, run_name
from fgm.teachers import bundled
from fgm.utils.errors import UserError
from fgm.utils.files import read_text, replacing
from fgm.utils.locks import require_free
from fgm.utils.records import append_row, read_rows

BUNDLED_WEIGHTS = "bundled_weights"  # key of a config whose run is not on this machine
RESULTS = "results.json"


def write_yaml(config: dict[str, Any], path: Path) -> None:
    """Write atomically: an interrupted write is not taken for another config."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a config that a run wrote: plain values, without interpolations.

    Raises:
        UserError: it holds anything else.
    """
    text = read_text(path, "the config of a run")
    try:
        content = yaml.safe_load(text)
        plain_text = json.dumps(content)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is no config of plain values ({reason}); nothing in it was run") from None
    if "${" in plain_text:  # ${oc.create:...} would name what targets() does not see
        raise UserError(f"{path}: is no config of plain values (interpolates with ${{...}}); nothing in it was run")
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no config")
    return content


def read_config(path: Path, requested: dict[str, Any]) -> dict[str, Any]:
    """Read a run's config to build from; it may name what the suite's configs name, or the user's request.

    Raises:
        UserError: it names anything else.
    """
    config = read_yaml(path)
    foreign = target_names(config) - target_names(requested) - known_targets()
    if foreign:
        raise UserError(f"{path}: names {min(foreign)}, which no config of the suite does: it was not called")
    return config


def target_names(node: Any) -> set[str]:
    return {target for _, target, _ in targets(node)}


@cache
def known_targets() -> frozenset[str]:
    texts = [path.read_text() for path in CONFIGS.rglob("*.yaml")]
    return frozenset(name for text in texts for name in re.findall(r"_target_: *([\w.]+)", text))


def is_done(config: dict[str, Any], run_dir: Path) -> bool:
    """Return whether run_dir holds the finished run of this config.

    Raises:
        UserError: it holds another config's run.
    """
    if not (run_dir / "config.yaml").exists():
        return False
    other = changes(read_yaml(run_dir / "config.yaml"), config)
    if other:
        raise UserError(
            f"{run_dir} holds a run of another config (differs in {', '.join(other)}): delete it or give run_dir="
        )
    return (run_dir / RESULTS).exists()


def with_precision(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return the config with what trainer.precision = auto means: what the run in run_dir began with, or is fastest here.

    It stands beside the config, as the device does: an `auto` run is the same run, with the same digest, on any device.
    """
    from fgm.training.precision import fastest_precision, kind_of_device

    if config["trainer"]["precision"] != "auto":
        return config
    file = run_dir / "config.yaml"
    began = read_yaml(file).get("resolved") if file.exists() else None
    fastest = {"precision": fastest_precision(kind_of_device(config["trainer"]["accelerator"]))}
    return config | {"resolved": began or fastest}


def finished(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config that a finished run was made with, or of the bundled weights of an experiment without a run.

    Raises:
        UserError: there is neither.
    """
    run_dir, experiment = Path(config["run_dir"]), config["experiment"]
    if (run_dir / RESULTS).exists():
        return read_config(run_dir / "config.yaml", config) | {"run_dir": str(run_dir)}
    require_free(run_dir)
    changed = changes(plain(experiment), config)
    if experiment not in bundled.names() or changed:
        raise UserError(
            f"{run_dir} holds no finished run: make train EXP={experiment}" + (" with the same ARGS" if changed else "")
        )
    print(f"{run_dir} holds no finished run: taking the weights that come with the suite ({experiment})")
    places = {"run_dir": str(run_dir), BUNDLED_WEIGHTS: str(bundled.weights(experiment))}
    return bundled.run(experiment)["config"] | places


def runs_file(config: dict[str, Any]) -> Path:
    """Return where a run is recorded: with its study, or with its experiment."""
    return Path(config["experiments"]) / config.get("study", {}).get("study", config["experiment"]) / "runs.jsonl"


def record(config: dict[str, Any]) -> Path:
    """Append a finished run's row to its runs.jsonl unless it is there, and copy the pictures of a plain experiment."""
    run_dir, path = Path(config["run_dir"]), runs_file(config)
    row = recorded_row(config)
    if row not in read_rows(path):
        append_row(path, row)
    pictures = run_dir / "samples" / "final.png"
    if (
        pictures.exists()
        and run_name(config["experiment"], changes(plain(config["experiment"]), config)) == config["experiment"]
    ):
        shutil.copyfile(pictures, path.with_name("samples.png"))
    return path


def recorded_row(config: dict[str, Any]) -> dict[str, Any]:
    """Read a finished run's row."""
    return json.loads((Path(config["run_dir"]) / RESULTS).read_text())


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """Return which run a row is of, and where it ran."""
    import torch

    from fgm.evaluation.evaluator import device_name

    device = device_name(device_of_rank(config["trainer"]["accelerator"]))
    return origin(config) | {"device": device, "torch": torch.__version__, "python": platform.python_version()}


def origin(config: dict[str, Any]) -> dict[str, Any]:
    """Return which run a row is of, of which code, and when."""
    return {
        "experiment": config["experiment"], "commit": commit(), "config_digest": digest(config),
        "study_digest": digest(config | {"seed": None}), "seed": config["seed"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def commit() -> str:
    """Return the working tree's commit, with + if tracked source or configs changed; unknown outside a checkout."""
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "src", "configs") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    root = Path(__file__).parents[3]
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def require_device(trainer: dict[str, Any]) -> None:
    """
    Raises:
        UserError: a config's trainer needs more devices than this machine has.
    """
    import torch

    from fgm.training.trainer import count_devices

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if trainer["accelerator"] == "gpu" and not count:
        raise UserError("trainer.accelerator = gpu: PyTorch finds no GPU here; give trainer.accelerator=cpu")
    if trainer["accelerator"] != "cpu" and 0 < count < count_devices(trainer["devices"]):
        raise UserError(f"trainer.devices = {trainer['devices']}: PyTorch finds {count} here")


def device_of_rank(accelerator: str = "auto") -> Any:
    """Return this process's accelerator, or the CPU if there is none or it is requested."""
    import torch

    cuda = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
