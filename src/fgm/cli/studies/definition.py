"""A study's sweep: configs/sweep/<study>.yaml, the one source of its grid, its tables and its W&B files.

    question       one sentence
    experiment     the recipe whose values are varied, unless another one is asked for
    metrics        {metric: min or max}; the first one decides, the others stand beside it
    seeds          of every point
    base           overrides that all points share, and that make a point small
    axes           {axis: values}; the grid is their product
    with_teacher   settings that a teacher's run is given too, e.g. path, where the recipe trains one
    units          {axis: what it counts}, for plots

An axis is either a setting with a list of values, `method.t_star: [0.5, 0.7]`, or a word of its own with named sets of
overrides, `generator: {uniform: [time=uniform], ...}`. The names are words, since they stand in file names and on W&B's
command lines.
"""

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fgm.cli.arguments import whole
from fgm.cli.config import CONFIGS
from fgm.utils.errors import UserError, first_line, hint

Value = str | int | float | bool | None
WORD = re.compile(r"[A-Za-z0-9_.+-]+")
MODES = ("min", "max")


@dataclass(frozen=True)
class Axis:
    """
    Attributes:
        name: a dotted setting, or a word.
        values: value -> the overrides that it stands for.
        free: whether the name is a setting, which takes other values too.
    """

    name: str
    values: dict[Value, list[str]]
    free: bool

    def restricted(self, given: str) -> "Axis":
        """To a comma-separated list of values.

        Raises:
            UserError: one of them is not named here.
        """
        words = given.split(",")
        unknown = [word for word in words if word not in self.values and not self.free]
        if unknown:
            raise UserError(f"{self.name} = {unknown[0]}: unknown; {hint(unknown[0], map(str, self.values))}")
        return replace(self, values=dict(self.named(word) for word in words))

    def named(self, word: str) -> tuple[Value, list[str]]:
        """As it stands here, where 1 is 1.0 and W&B's None is null."""
        known = [item for item in self.values.items() if str(item[0]) == word]
        if known:
            return known[0]
        value = parsed(self.name, word)
        same = [item for item in self.values.items() if item[0] == value]
        return same[0] if same else (value, [f"{self.name}={text(value)}"])


@dataclass(frozen=True)
class Sweep:
    """See the module; axes by their names."""

    name: str
    question: str
    metrics: dict[str, str]
    axes: dict[str, Axis]
    experiment: str = "digits_fgm"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    base: list[str] = field(default_factory=list)
    with_teacher: list[str] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        return next(iter(self.metrics))

    @property
    def mode(self) -> str:
        return self.metrics[self.metric]


def text(value: Value) -> str:
    """As Hydra reads it."""
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else str(value)


def parsed(name: str, word: str) -> Value:
    """As Hydra reads it: 1e-5 is a number, which plain YAML takes for a string.

    Raises:
        UserError: it is no single value.
    """
    try:
        value = OverridesParser.create().parse_override(f"{name}={word}").value()
    except HydraException as error:
        raise UserError(f"{name} = {word}: {first_line(error)}") from error
    if not isinstance(value, Value):
        raise UserError(f"{name} = {word}: must be one value, or several with commas between them")
    return value


def sweeps() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))


def read_sweep(name: str) -> Sweep:
    """
    Raises:
        UserError: there is no such sweep, or its file is not of the form above.
    """
    if name not in sweeps():
        raise UserError(
            f"sweep = {name}: unknown; {hint(name, sweeps())}" if name else f"sweep= is missing; {hint('', sweeps())}"
        )
    node: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "sweep" / f"{name}.yaml"))
    where, known = f"configs/sweep/{name}.yaml", [f.name for f in fields(Sweep) if f.name != "name"]
    for key in node:
        if key not in known:
            raise UserError(f"{where}: there is no setting {key}; {hint(key, known)}")
    for key in ("question", "metrics", "axes"):
        if not node.get(key):
            raise UserError(f"{where}: {key} is missing")
    wrong = [mode for mode in node["metrics"].values() if mode not in MODES]
    if wrong:
        raise UserError(f"{where}: metrics: {wrong[0]} must be one of {', '.join(MODES)}")
    axes = {axis: read_axis(axis, values, where) for axis, values in node["axes"].items()}
    return Sweep(**(node | {"name": name, "axes": axes}))


def read_axis(name: str, values: Any, where: str) -> Axis:
    if isinstance(values, list):
        return Axis(name, {value: [f"{name}={text(value)}"] for value in values}, True)
    if not isinstance(values, dict) or not all(isinstance(overrides, list) for overrides in values.values()):
        raise UserError(f"{where}: axes.{name} must be a list of values, or name lists of overrides")
    odd = [value for value in values if not WORD.fullmatch(str(value))]
    if odd:
        raise UserError(f"{where}: axes.{name}: {odd[0]!r} must be a word of letters, digits and _ . + -")
    return Axis(name, {str(value): overrides for value, overrides in values.items()}, False)


def restrict(sweep: Sweep, arguments: list[str]) -> tuple[Sweep, list[str]]:
    """The part of a sweep that the arguments name, <axis>=<value>,... and seed=<seed>,...; and the other arguments."""
    axes, seeds, rest = dict(sweep.axes), sweep.seeds, []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in axes:
            axes[key] = sweep.axes[key].restricted(value)
        elif key == "seed":
            seeds = [whole({"seed": word}, "seed") for word in value.split(",")]
        else:
            rest.append(argument)
    return replace(sweep, axes=axes, seeds=seeds), rest


def with_metrics(sweep: Sweep, given: str) -> Sweep:
    """With other metrics, given as <metric>:<min or max>,..., where any are."""
    pairs = [word.partition(":") for word in given.split(",") if word]
    wrong = [metric for metric, _, mode in pairs if mode not in MODES]
    if wrong:
        raise UserError(f"metrics = {given}: say {wrong[0]}:min or {wrong[0]}:max")
    return replace(sweep, metrics={metric: mode for metric, _, mode in pairs} or sweep.metrics)
