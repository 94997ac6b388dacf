"""A sweep as W&B has it: the same axes and seeds, and a command that hands W&B's choice back to fgm.cli.sweep.

    wandb sweep outputs/t_star/wandb.yaml        creates it, and prints its id
    wandb agent <entity>/fgm/<id>                runs its points, on as many machines as agents are started

An agent fills ${args_no_hyphens} with <axis>=<value> seed=<seed>, which is a part of the sweep as a person names it.
"""

from pathlib import Path
from typing import Any

import yaml

from fgm.cli.config import read_recipe
from fgm.cli.studies.definition import Sweep, text
from fgm.cli.studies.points import require_axes
from fgm.utils.account import PROJECT, final


def write_sweep(sweep: Sweep, recipe: str, overrides: list[str], retry: bool, out: str) -> str:
    """To outputs/<study>/wandb.yaml or out; says what to do with it."""
    require_axes(sweep, recipe, [*sweep.base, *overrides])
    outputs = read_recipe(recipe, [*sweep.base, *overrides])["outputs"]
    path = Path(out or f"{outputs}/{sweep.name}/wandb.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sweep_config(sweep, recipe, overrides, retry), sort_keys=False, width=120))
    return f"{path}: wandb sweep {path}, then wandb agent <what it prints>"


def sweep_config(sweep: Sweep, recipe: str, overrides: list[str], retry: bool) -> dict[str, Any]:
    """As W&B's schema for sweeps has it."""
    axes = {axis.name: {"values": list(axis.values)} for axis in sweep.axes.values()}
    metrics = ",".join(f"{metric}:{mode}" for metric, mode in sweep.metrics.items())
    fixed = [f"sweep={sweep.name}", f"experiment={recipe}", f"metrics={metrics}", f"retry={text(retry)}", *overrides]
    return {
        "name": f"{sweep.name} of {recipe}",
        "description": sweep.question,
        "project": PROJECT,
        "method": "grid",
        "metric": {"name": final(sweep.metric), "goal": f"{sweep.mode}imize"},
        "parameters": axes | {"seed": {"values": sweep.seeds}},
        "command": ["${env}", "${interpreter}", "-m", "fgm.cli.sweep", *fixed, "${args_no_hyphens}"],
    }
