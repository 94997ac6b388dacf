"""What the documents' tests share: the commands that a document shows, and what each would be started with."""

import re
import shlex
from functools import cache
from importlib import import_module
from typing import Any

import nbformat
from fgm.cli.evaluators import evaluator_of_folder, evaluator_settings, read_evaluator

from fgm.cli.arguments import parse_arguments, read_settings, split
from fgm.cli.config import read_recipe
from fgm.cli.sweep import read_sweep, values_of
from fgm.cli.table import DOCUMENTS, ROOT

NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))
ALL = (*DOCUMENTS, *NOTEBOOKS)
WITHOUT_RECIPE = ("fgm.cli.score", "fgm.cli.reference")
INLINE = re.compile(r"(?<!`)`((?:make|torchrun|srun|python) [^`\n]+)`")


def text_of(name: str) -> str:
    """Of a notebook, what stands between its code."""
    if not name.endswith(".ipynb"):
        return (ROOT / name).read_text()
    return "\n".join(cell.source for cell in nbformat.read(ROOT / name, as_version=4).cells if cell.cell_type != "code")


def blocks(name: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text_of(name), re.S)


def commands(name: str) -> list[str]:
    """Of shell blocks, and of code within lines; one that leaves a place open, <so> or ..., is none."""
    lines = [line for block in blocks(name, "bash") for line in block.splitlines() if line]
    prose = re.sub(r"```.*?```", "", text_of(name), flags=re.S)
    shown = [*(line.partition(" #")[0].strip() for line in lines), *INLINE.findall(prose)]
    return [command for command in shown if "<" not in command and "..." not in command]


def started(command: str) -> tuple[str, list[str]]:
    """The module and its arguments, as make, torchrun or srun would start it; no module for what is make's alone."""
    words = shlex.split(command)
    if words[0] != "make":
        module, *arguments = words[words.index("-m") + 1 :]
        return module, arguments
    given, line = dict(word.split("=", 1) for word in words[2:]), line_of(words[1])
    assert given.keys() <= {"EXP", "ARGS", "SWEEP", "PROMPT", "BENCH"}, (
        f"{command}: a variable that the Makefile does not read"
    )
    arguments, module = shlex.split(given.get("ARGS", "")), re.search(r"\$\(RUN\) (fgm\.cli\.\w+)", line)
    named = [f"sweep={given.get('SWEEP', '')}"] if "$(SWEEP)" in line else []
    named += [f"experiment={given['EXP']}"] if "EXP" in given else []
    named += [f"prompt={given['PROMPT']}"] if "PROMPT" in given else []
    return module[1] if module else "", [*named, *arguments]


@cache
def line_of(target: str) -> str:
    """What make runs for it."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{target}:[^\n]*## [^\n]*\n\t@([^\n]*)", makefile, re.M)
    assert found, f"make {target}: no such target"
    return "" if makefile[found.end() :].startswith("\n\t@") else found[1]


def compose(module: str, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What a command does before anything heavy: the config that it runs, and the overrides which that is to hold.

    Raises:
        UserError: a recipe, a study, a setting or a value that is not there.
    """
    evaluator, rest = evaluator_settings(arguments)
    is_folder = any(argument.startswith("samples_dir=") for argument in rest)
    own = settings_of(module, is_folder)
    if module in WITHOUT_RECIPE or is_folder:
        given, recipe, overrides = read_settings(rest, own), "digits_fgm", []
    else:
        given, overrides = split(rest, own)
        recipe, overrides = recipe_of(given, overrides)
    if given.get("sweep"):
        read_sweep(given["sweep"])
    config = composed(recipe, tuple(overrides))
    if is_folder:
        evaluator_of_folder(given["evaluator"], evaluator, given["data"])
    elif given.get("evaluator"):
        read_evaluator(given["evaluator"], evaluator, recipe, overrides)
    return config, overrides


def stands(config: dict[str, Any], override: str) -> bool:
    """Whether a value stands where it was put; of a noun, which is a node of its own, whether there is one."""
    place, _, word = override.lstrip("+").partition("=")
    place = place.rpartition("@")[2]  # a noun put elsewhere: group@place
    found: Any = config
    for name in place.split("."):
        found = found[name]
    return isinstance(found, dict | list) or found == values_of(place, word)[0]


def settings_of(module: str, is_folder: bool) -> dict[str, str]:
    """Those of a command's own, with their defaults."""
    entry: Any = import_module(module)
    names = ("FOLDER",) if is_folder and hasattr(entry, "FOLDER") else ("OWN", "RUN")
    return next((getattr(entry, name) for name in names if hasattr(entry, name)), {})


def recipe_of(given: dict[str, str], overrides: list[str]) -> tuple[str, list[str]]:
    """A recipe and its overrides, of which a multirun's several values are left to Hydra."""
    single = [o for o in overrides if not o.startswith("hydra") and len(values_of(*o.split("=", 1))) == 1]
    recipe, rest = parse_arguments(single)
    return recipe, [f"+sweep={given['sweep']}", *rest] if "sweep" in given else rest


@cache
def composed(recipe: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    return read_recipe(recipe, list(overrides))
