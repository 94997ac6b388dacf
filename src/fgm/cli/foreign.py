"""Checks of what a config names outside of the suite, such as a teacher of one's own, by reading its source.

Nothing is imported, and what a source does not tell for certain, such as a name that another module gives it, passes.
"""

import ast
from importlib.util import find_spec
from typing import Any

from fgm.cli.signatures import check_arguments, constructor_of, source_of, syntax, targets
from fgm.utils.errors import UserError, hint


def check_foreign(config: Any) -> None:
    """Every _target_ in config that is not the suite's.

    Raises:
        UserError: its module is not there, does not define it, or it takes other arguments.
    """
    for node, target, where in targets(config):
        if not target.startswith("fgm."):
            check_target(node, target, where)


def check_target(node: dict[str, Any], target: str, where: str) -> None:
    module, _, name = target.rpartition(".")
    if not module or find_spec(module.partition(".")[0]) is None:
        place = f"{module.partition('.')[0]}.py in this folder or on PYTHONPATH" if module else "module before its name"
        raise UserError(f"{where}._target_ = {target}: there is no {place}")
    file = source_of(module)
    if file is None or "site-packages" in file.parts:
        return
    defined = {n.name: n for n in syntax(module).body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    if name not in defined and not bound_otherwise(module, name):
        raise UserError(f"{where}._target_ = {target}: {file} defines no {name}; {hint(name, defined)}")
    if name in defined and tells_all(defined[name]):
        check_arguments(node, target, where)


def bound_otherwise(module: str, name: str) -> bool:
    """Whether anything but a definition may give the module that name."""
    words = {word for n in ast.walk(syntax(module)) for word in names_in(n)}
    return bool(words & {name, "*", "__getattr__"})


def names_in(node: ast.AST) -> list[str]:
    if isinstance(node, ast.alias):
        return [node.asname or node.name]
    return [node.id] if isinstance(node, ast.Name) else [node.name] if isinstance(node, ast.FunctionDef) else []


def tells_all(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether its parameters stand here: no inherited constructor, nothing by * or **."""
    function = node if isinstance(node, ast.FunctionDef) else constructor_of(node)
    if function is None:
        return False
    given = function.args
    return not (given.vararg or given.kwarg or given.kwonlyargs or given.posonlyargs)
