"""The points of a sweep: each value of each axis with each other one, and each seed, as resolved configs."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from fgm.analysis.sweeps import label
from fgm.analysis.sweeps import short_name as short
from fgm.cli.config import digest, read_recipe
from fgm.cli.studies.definition import Sweep, Value
from fgm.utils.errors import UserError


@dataclass(frozen=True)
class Point:
    """One run of a study; config is complete, and holds the study's part of the run's row under `study`."""

    config: dict[str, Any]

    @property
    def swept(self) -> dict[str, Value]:
        return self.config["study"]["swept"]

    @property
    def study(self) -> str:
        return self.config["study"]["study"]

    @property
    def metric(self) -> str:
        """The one that decides."""
        return next(iter(self.config["study"]["metrics"]))

    @property
    def digest(self) -> str:
        return digest(self.config)

    @property
    def label(self) -> str:
        return label(self.swept, self.config["seed"])


def points(sweep: Sweep, recipe: str, overrides: list[str]) -> list[Point]:
    """Seed by seed, so that a sweep that is cut off has whole grids.

    Raises:
        UserError: the recipe does not take one of the values.
    """
    common = [*sweep.base, *overrides]
    base = read_recipe(recipe, common)
    require_axes(sweep, recipe, common)
    grid = [
        (swept, read_recipe(recipe, [*common, *chosen, *for_teacher(sweep, base["teacher"], chosen)]))
        for swept, chosen in combinations(sweep)
    ]
    told = {"study": sweep.name, "metrics": sweep.metrics, "sweep_digest": digest(base | {"seed": None})}
    return [point(config, seed, told | {"swept": swept}) for seed in sweep.seeds for swept, config in grid]


def combinations(sweep: Sweep) -> Iterator[tuple[dict[str, Value], list[str]]]:
    """What is swept, and the overrides that it means."""
    for items in product(*(axis.values.items() for axis in sweep.axes.values())):
        swept = dict(zip(sweep.axes, (value for value, _ in items), strict=True))
        yield swept, [override for _, meant in items for override in meant]


def require_axes(sweep: Sweep, recipe: str, common: list[str]) -> None:
    """Refuse an axis that the recipe does not have by its first value: a whole grid takes seconds to compose."""
    for axis in sweep.axes.values():
        try:
            read_recipe(recipe, [*common, *next(iter(axis.values.values()))])
        except UserError as refusal:
            raise UserError(f"sweep {sweep.name} does not fit {recipe}: axis {axis.name}: {refusal}") from refusal


def for_teacher(sweep: Sweep, teacher: dict[str, Any] | None, chosen: list[str]) -> list[str]:
    """What a teacher that is trained by its recipe must share with the distillation, as an override of the latter."""
    shared = [o for o in chosen if re.split("[.=]", o)[0] in sweep.with_teacher]
    if not shared or not teacher or teacher["_target_"] != "fgm.cli.teacher.from_run":
        return []
    return [f"teacher.overrides={json.dumps([*teacher['overrides'], *shared])}"]


def point(config: dict[str, Any], seed: int, told: dict[str, Any]) -> Point:
    """With a directory of its own: its values for people, and the start of its digest."""
    config = config | {"seed": seed, "study": told}
    words = [config["recipe"], *(f"{short(a, told['swept'])}-{v}" for a, v in told["swept"].items()), f"seed-{seed}"]
    name = "__".join([*words, digest(config)[:6]])
    return Point(config | {"run_dir": f"{config['outputs']}/{told['study']}/{name}"})
