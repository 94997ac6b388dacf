"""Weights that come with the suite, so that a clone draws and distils at once; README.md beside them tells each one's
run, hash and licence.

    <recipe>.safetensors    what the recipe's run exported, rounded to bfloat16
    <recipe>.json           that run's row of runs.jsonl, measured on the rounded weights, its config, and their sha256
"""

import json
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in DIRECTORY.glob("*.safetensors"))


def weights(recipe: str) -> Path:
    return DIRECTORY / f"{recipe}.safetensors"


def run(recipe: str) -> dict[str, Any]:
    """row, config and sha256."""
    return json.loads((DIRECTORY / f"{recipe}.json").read_text())
