"""A run's config.yaml: written whole, read as plain values, and built from only where the suite names what it calls.

A run may come from anybody. What stands in its config is data; a _target_ is called, and so must be known here.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fgm.cli.config import CONFIGS
from fgm.utils.errors import UserError
from fgm.utils.files import read_text, replacing


def write_yaml(config: dict[str, Any], path: Path) -> None:
    """Atomically: a run that is cut off here is not taken for one of another config."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))


def read_yaml(path: Path) -> dict[str, Any]:
    """A config that a run has written: plain values alone, of which none is computed from others.

    Raises:
        UserError: it is none.
    """
    text = read_text(path, "the config of a run")
    try:
        found = yaml.safe_load(text)
        plain = json.dumps(found)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: is no config of plain values ({said}); nothing in it was run") from None
    if "${" in plain:  # ${oc.create:...} would name what targets() does not see
        raise UserError(f"{path}: is no config of plain values (interpolates with ${{...}}); nothing in it was run")
    if not isinstance(found, dict):
        raise UserError(f"{path}: is no config")
    return found


def read_config(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """A run's config, to be built from: what it names is named in the suite's configs, or in what the user asked for.

    Raises:
        UserError: it names anything else.
    """
    found = read_yaml(path)
    foreign = targets(found) - targets(asked) - known_targets()
    if foreign:
        raise UserError(f"{path}: names {min(foreign)}, which no config of the suite does: it was not called")
    return found


def targets(node: Any) -> set[str]:
    """All that a config names to be called."""
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = {str(node["_target_"])} if isinstance(node, dict) and "_target_" in node else set()
    return own.union(*map(targets, below))


@cache
def known_targets() -> frozenset[str]:
    texts = [path.read_text() for path in CONFIGS.rglob("*.yaml")]
    return frozenset(name for text in texts for name in re.findall(r"_target_: *([\w.]+)", text))
