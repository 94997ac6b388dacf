"""The commands that the documents show, and what each of them would run."""

import re
import shlex
from copy import copy
from functools import cache
from importlib import import_module
from typing import Any

import nbformat

from fgm.cli.command import Command
from fgm.cli.main import MODULES
from fgm.cli.table import DOCUMENTS, ROOT

NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb"))
ALL = (*DOCUMENTS, *NOTEBOOKS)
INLINE = re.compile(r"(?<!`)`((?:make|fgm|torchrun|srun|python) [^`\n]+)`")


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
    if words[0] == "fgm":
        return f"fgm.cli.{MODULES[words[1]]}", words[2:]
    if words[0] != "make":
        module, *arguments = words[words.index("-m") + 1 :]
        return module, arguments
    given, line = dict(word.split("=", 1) for word in words[2:]), line_of(words[1])
    assert given.keys() <= {"EXP", "ARGS", "SWEEP", "PROMPT", "BENCH"}, (
        f"{command}: a variable that the Makefile does not read"
    )
    arguments, module = shlex.split(given.get("ARGS", "")), re.search(r"\$\(RUN\) (fgm\.cli\.\w+)", line)
    named = [f"+sweep={given.get('SWEEP', '')}"] if "$(SWEEP)" in line else []
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


def compose(module: str, arguments: list[str]) -> None:
    """Compose and check what a command would run, and run nothing; of a study's sweep, its first point.

    Raises:
        UserError: an experiment, a study, a setting or a value does not exist.
    """
    command: Any = import_module(module).main
    if isinstance(command, Command):
        checked = copy(command)
        checked.function = lambda config, settings: None
        checked(arguments)


def own_module(argument: str) -> tuple[str, str] | None:
    """Return the file name and the code that a document shows for key._target_=module.Class of the reader's own."""
    found = re.fullmatch(r"[\w.+]+\._target_=(my_\w+|\w+)\.(\w+)", argument)
    shown = [block for name in ALL for block in blocks(name, "python") if found and f"class {found[2]}" in block]
    return (f"{found[1]}.py", shown[0]) if found and shown else None
