"""Check every _target_ of a config against its signature: names, types, choices and ranges, before it is called.

The annotations are those that `fgm.utils.validation.validated` enforces from Python.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fgm.utils.errors import UserError, first_line, hint
from fgm.utils.validation import complaint


def check(node: Any, where: str = "") -> None:
    """
    Raises:
        UserError: a _target_ does not exist, or takes other arguments than the config gives it.
    """
    for inner, target, place in targets(node, where):
        check_arguments(inner, locate(target, f"{place}._target_ = {target}"), target, place)


def targets(node: Any, where: str = "") -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield every node that has a _target_, the target and the node's dotted place; outer nodes first."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from targets(item, f"{where}[{i}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        yield node, str(node["_target_"]), where
    for key, value in node.items():
        yield from targets(value, f"{where}.{key}".lstrip("."))


def locate(target: str, where: str) -> Callable[..., Any]:
    """Import what a dotted name refers to, which may be an attribute of a class."""
    module, _, name = target.rpartition(".")
    if not all(target.split(".")) or not module:
        raise UserError(f"{where}: there is no module before its name")
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise UserError(f"{where}: there is no {package}.py in this folder or on PYTHONPATH, nor a package {package}")
    try:
        owner = import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or "-"):
            raise UserError(f"{where}: needs {error.name}, which is not installed") from error
        owner = locate(module, where)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: importing {module} fails: {type(error).__name__}: {first_line(error)}") from error
    if not hasattr(owner, name):
        defined = [key for key, value in vars(owner).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{where}: {module} defines no {name}; {hint(name, defined)}")
    return getattr(owner, name)


def check_arguments(node: dict[str, Any], function: Callable[..., Any], target: str, where: str) -> None:
    """Compare a node's keys and plain values with a signature."""
    try:
        known = dict(inspect.signature(function).parameters)
    except ValueError:  # a builtin without one
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    known = {name: p for name, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    prefix = f"{where}." if where else ""
    for key, value in given.items():
        if key not in known and not open_ended:
            raise UserError(f"{prefix}{key}: {target} has no such setting; {hint(key, known)}")
        is_node = isinstance(value, dict) and "_target_" in value
        problem = None if is_node or key not in known else complaint(known[key].annotation, value)
        if problem:
            raise UserError(f"{prefix}{key} = {value}: {problem}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in given]
    if missing and not {"_partial_", "_args_"} & node.keys():
        raise UserError(f"{where + ': ' if where else ''}{target} also needs {', '.join(missing)}")


def make(node: dict[str, Any], what: str) -> Any:
    """Instantiate a node; a constructor that rejects its arguments is a UserError.

    Args:
        what: names the node in the message.
    """
    with refused(what):
        return instantiate(node)


@contextmanager
def refused(what: str) -> Iterator[None]:
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        raise cause if isinstance(cause, UserError) else UserError(f"{what}: {cause or error}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
