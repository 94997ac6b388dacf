"""Weights that come with the suite, so that a clone can sample and distil at once; `python -m fgm.cli.bundle` adds them.

<recipe>.safetensors    weights of the recipe's run, rounded to bfloat16
<recipe>.json           "sha256" of that file; "row": the run's row of runs.jsonl with results measured on the
                        rounded weights; "config": the run's
README.md               the card: what they generate, how they were made, their measurements, their licence
"""

import json
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent


def names() -> list[str]:
    """Return the recipes with bundled weights."""
    return sorted(path.stem for path in DIRECTORY.glob("*.safetensors"))


def weights(recipe: str) -> Path:
    return DIRECTORY / f"{recipe}.safetensors"


def run(recipe: str) -> dict[str, Any]:
    """Return the recipe's "sha256", "row" and "config"."""
    return json.loads((DIRECTORY / f"{recipe}.json").read_text())
