"""The evaluators that a command may be asked for by name: configs/evaluation/<name>.yaml, and what they need."""

from typing import Any

from fgm.arguments import choice
from fgm.config import CONFIGS, read_recipe
from fgm.errors import Refusal


def names(group: str) -> tuple[str, ...]:
    """Of the files in a group of configs/."""
    return tuple(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))


def read_noun(group: str, name: str, key: str, recipe: str = "digits_fgm", overrides: list[str] | None = None) -> Any:
    """The node of a group, composed within a recipe; key is the setting that asked for it.

    Raises:
        Refusal: there is no such one.
    """
    choice({key: name}, key, names(group))
    return read_recipe(recipe, [*(overrides or []), f"{group}={name}"])[group]


def make(node: dict[str, Any], what: str) -> Any:
    """The object of a node; a constructor that finds its arguments wrong is one line."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        raise Refusal(str(cause) if isinstance(cause, Refusal) else f"{what}: {cause or error}") from error


def device_of_rank() -> Any:
    """This process's accelerator, or the CPU."""
    import os

    import torch

    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
