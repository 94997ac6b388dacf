"""Where a run is recorded, and what its row says besides results."""

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgm.cli.config import digest
from fgm.cli.evaluators import device_of_rank


def diary(config: dict[str, Any]) -> Path:
    """Where a run is recorded: with its study, if it is a point of one, else with its recipe."""
    return Path(config["experiments"]) / config.get("study", {}).get("study", config["recipe"]) / "runs.jsonl"


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """Origin, and where it ran."""
    import torch

    from fgm.evaluation.provenance import device_name

    device = device_name(device_of_rank(config["trainer"]["accelerator"]))
    return origin(config) | {"device": device, "torch": torch.__version__, "python": platform.python_version()}


def origin(config: dict[str, Any]) -> dict[str, Any]:
    """Which run a row is of, of which code, and when."""
    return {
        "recipe": config["recipe"], "commit": commit(), "config_digest": digest(config),
        "study_digest": digest(config | {"seed": None}), "seed": config["seed"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def commit() -> str:
    """Of the working tree, with + where it has changes to tracked source or configs; unknown outside a checkout."""
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "src", "configs") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    root = Path(__file__).parents[3]
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
