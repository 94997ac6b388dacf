"""The evaluators that a command may be asked for by name: configs/evaluation/<name>.yaml, and what they need."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fgm.cli.arguments import choice
from fgm.cli.config import CONFIGS, read_recipe
from fgm.evaluation.preflight import require_files
from fgm.utils.errors import UserError

RECIPE = "digits_fgm"  # that a noun is composed within where no recipe is asked for
PREFIX = "evaluator."


def names(group: str) -> tuple[str, ...]:
    """Of the files in a group of configs/."""
    return tuple(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))


def read_data(name: str) -> dict[str, Any]:
    """The node of configs/data/<name>.yaml."""
    choice({"data": name}, "data", names("data"))
    return read_recipe(RECIPE, [f"data={name}"])["data"]


def read_evaluator(name: str, settings: list[str], recipe: str, overrides: list[str]) -> dict[str, Any]:
    """The node of configs/evaluation/<name>.yaml, within a recipe; its own settings were given as evaluator.<key>=.

    Raises:
        UserError: there is no such one, or no such setting.
    """
    choice({"evaluator": name}, "evaluator", names("evaluation"))
    own = [f"evaluation.{setting.removeprefix(PREFIX)}" for setting in settings]
    with as_commands_name_it():
        return read_recipe(recipe, [*overrides, f"evaluation={name}", *own])["evaluation"]


def evaluator_of_folder(name: str, settings: list[str], data: str) -> dict[str, Any]:
    """An evaluator without a recipe, whose data a folder cannot know.

    Raises:
        UserError: it takes something from data, and neither data nor its own setting is given.
    """
    if data:
        choice({"data": data}, "data", names("data"))
        return read_evaluator(name, settings, RECIPE, [f"data={data}"])
    choice({"evaluator": name}, "evaluator", names("evaluation"))
    text, reference = (CONFIGS / "evaluation" / f"{name}.yaml").read_text(), f"{PREFIX}suite.reference="
    if any(setting.startswith(reference) for setting in settings):
        settings = [*settings, f"{PREFIX}suite.data=null"]
    own = {setting.partition("=")[0].rpartition(".")[2] for setting in settings}
    if set(re.findall(r"(\w+): \$\{data[.}]", text)) - own:
        raise UserError(
            f"evaluator = {name} compares with data, and a folder does not say with which: give data=<name> of "
            f"configs/data" + (f", or {reference}<file>.npz" if "reference:" in text else "")
        )
    return read_evaluator(name, settings, RECIPE, [])


def evaluator_settings(arguments: list[str]) -> tuple[list[str], list[str]]:
    """evaluator.<key>=<value>, and the other arguments."""
    own = [argument for argument in arguments if argument.startswith(PREFIX)]
    return own, [argument for argument in arguments if argument not in own]


def make(node: dict[str, Any], what: str) -> Any:
    """The object of a node; a constructor that finds its arguments wrong is one line."""
    with refused(what):
        return instantiate(node)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """What a constructor finds wrong, as its own UserError or as one that says of what."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        raise cause if isinstance(cause, UserError) else UserError(f"{what}: {cause or error}") from error
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def require_evaluator(node: dict[str, Any]) -> None:
    """Its files, before anything heavy is imported."""
    with as_commands_name_it():
        require_files(node)


def make_evaluation(node: dict[str, Any]) -> Any:
    """An evaluator."""
    with as_commands_name_it():
        return make(node, "evaluator")


@contextmanager
def as_commands_name_it() -> Iterator[None]:
    """What a UserError says of evaluation.<key>, it says of evaluator.<key>."""
    try:
        yield
    except UserError as refusal:
        raise UserError(re.sub(r"(?<![\w./])evaluation\.", PREFIX, str(refusal))) from refusal


def require_device(trainer: dict[str, Any]) -> None:
    """
    Raises:
        UserError: a config's trainer asks for more than this machine has.
    """
    import torch

    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if trainer["accelerator"] == "gpu" and not found:
        raise UserError("trainer.accelerator = gpu: PyTorch finds no GPU here; give trainer.accelerator=cpu")
    if trainer["accelerator"] != "cpu" and 0 < found < trainer["devices"]:
        raise UserError(f"trainer.devices = {trainer['devices']}: PyTorch finds {found} here")


def device_of_rank(accelerator: str = "auto") -> Any:
    """This process's accelerator, or the CPU where there is none or it is asked for."""
    import torch

    cuda = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
