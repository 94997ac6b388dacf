"""Weights that come with the suite, so that a clone can sample and distil at once; `python -m fgm.cli.main bundle` adds them.

<experiment>.safetensors    weights of the experiment's run, rounded to bfloat16
<experiment>.json           "sha256" of that file; "row": the run's row of runs.jsonl with results measured on the
                        rounded weights; "config": the run's
README.md               the card: what they generate, how they were made, their measurements, their licence
"""

import json
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent


def names() -> list[str]:
    """Return the experiments with bundled weights."""
    return sorted(path.stem for path in DIRECTORY.glob("*.safetensors"))


def weights(experiment: str) -> Path:
    return DIRECTORY / f"{experiment}.safetensors"


def run(experiment: str) -> dict[str, Any]:
    """Return the experiment's "sha256", "row" and "config"."""
    return json.loads((DIRECTORY / f"{experiment}.json").read_text())
