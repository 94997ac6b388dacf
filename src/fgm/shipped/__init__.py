"""Weights that come with the suite, so that a clone draws and distils at once. None do yet: a recipe's files lie here
once its run is good enough to be handed on.

    <recipe>.safetensors    what the recipe's run exported, rounded to bfloat16
    <recipe>.json           that run's row of runs.jsonl, measured on the rounded weights, and its config
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
    """row and config."""
    return json.loads((DIRECTORY / f"{recipe}.json").read_text())
