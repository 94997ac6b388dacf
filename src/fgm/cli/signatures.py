"""Checks a config node against the signature of its _target_, by reading the source and importing nothing.

The annotation at the constructor is the one place where a choice or a range is stated:

    t_star: Annotated[float, "(0, 1]"]        an interval
    c_in: Literal["one", "t_star"]            a choice

so that a bad value is refused in milliseconds, before torch is imported.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError, hint

PLAIN = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}


@dataclass(frozen=True)
class Parameter:
    annotation: ast.expr | None
    required: bool


@cache
def syntax(module: str) -> ast.Module:
    found = source_of(module)
    if found is None:
        raise UserError(f"there is no module {module}")
    return ast.parse(found.read_text())


def source_of(module: str) -> Path | None:
    """Its file: the suite's own, or the first on sys.path."""
    stems = [Path(place).joinpath(*module.split(".")) for place in (Path(__file__).parents[2], *sys.path)]
    files = (file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py"))
    return next((file for file in files if file.is_file()), None)


def definition(module: str, name: str) -> tuple[str, ast.AST]:
    """The module and node that define name, following imports within fgm."""
    for node in syntax(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            return module, node.value
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fgm"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(str(node.module), alias.name)
    defined = [node.name for node in syntax(module).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    raise UserError(f"{module} defines no {name}; {hint(name, defined)}")


@cache
def parameters(target: str) -> dict[str, Parameter]:
    """Of a function, or of a class's constructor or dataclass fields."""
    module, node = definition(*target.rsplit(".", 1))
    if isinstance(node, ast.ClassDef):
        constructor = constructor_of(node)
        if constructor is None:
            fields = [
                f for f in node.body if isinstance(f, ast.AnnAssign) and "ClassVar" not in ast.unparse(f.annotation)
            ]
            return {ast.unparse(f.target): Parameter(f.annotation, f.value is None) for f in fields}
        node = constructor
    assert isinstance(node, ast.FunctionDef)
    arguments = [a for a in node.args.args if a.arg != "self"]
    first_default = len(arguments) - len(node.args.defaults)
    return {a.arg: Parameter(a.annotation, i < first_default) for i, a in enumerate(arguments)}


def constructor_of(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)


def check(node: Any, where: str = "") -> None:
    """Refuse unknown, missing, mistyped and out-of-range settings of the suite's own _target_s below node."""
    for inner, target, place in targets(node, where):
        if target.startswith("fgm."):
            check_arguments(inner, target, place)


def targets(node: Any, where: str = "") -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every node that has a _target_, that, and its dotted place; a node before what stands in it."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from targets(item, f"{where}[{i}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        yield node, str(node["_target_"]), where
    for key, value in node.items():
        yield from targets(value, f"{where}.{key}".lstrip("."))


def check_arguments(node: dict[str, Any], target: str, where: str) -> None:
    try:
        known = parameters(target)
    except UserError as refusal:
        raise UserError(f"{where}._target_ = {target}: {refusal}") from None
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{where}.{key}: {target} has no such setting; {hint(key, known)}")
        complaint = mismatch(known[key].annotation, value, target.rsplit(".", 1)[0])
        if complaint:
            raise UserError(f"{where}.{key} = {value}: {complaint}")
    missing = [name for name, parameter in known.items() if parameter.required and name not in given]
    if missing and not node.get("_partial_"):
        raise UserError(f"{where}: {target} also needs {', '.join(missing)}")


def mismatch(annotation: ast.expr | None, value: Any, module: str) -> str | None:
    """What is wrong with value, or None. Annotations that are no plain type, choice or range pass."""
    if isinstance(annotation, ast.BinOp):  # X | None
        complaints = [mismatch(side, value, module) for side in (annotation.left, annotation.right)]
        return None if None in complaints else complaints[0]
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None if value is None else "must be null"
    if isinstance(annotation, ast.Name):
        return mismatch_of_name(annotation.id, value, module)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        return mismatch_of_subscript(annotation.value.id, annotation.slice, value, module)
    return None


def mismatch_of_name(name: str, value: Any, module: str) -> str | None:
    if name in PLAIN:
        right = isinstance(value, PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
        return None if right else f"must be of type {name}"
    try:
        module, alias = definition(module, name)
    except UserError:
        return None
    return mismatch(alias, value, module) if isinstance(alias, ast.expr) else None


def mismatch_of_subscript(name: str, inner: ast.expr, value: Any, module: str) -> str | None:
    if name == "Literal":
        choices = ast.literal_eval(inner)
        choices = choices if isinstance(choices, tuple) else (choices,)
        return None if value in choices else f"must be one of {', '.join(map(str, choices))}"
    if name == "Annotated" and isinstance(inner, ast.Tuple):
        interval = ast.literal_eval(inner.elts[1])
        wrong = mismatch(inner.elts[0], value, module)
        return wrong or (None if within(value, interval) else f"must lie in {interval}")
    if name in ("tuple", "list", "Sequence") and not isinstance(value, list):
        return "must be a list"
    return None


def within(value: float, interval: str) -> bool:
    """Whether value lies in an interval such as "(0, 1]"."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below
