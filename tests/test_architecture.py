"""The rooms of the house: who imports whom, where each library lives, and that files stay readable."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FLOORS = (
    ("utils",),
    ("flow",),
    ("networks", "data"),
    ("teachers", "analysis", "evaluation"),
    ("training",),
    ("cli",),
)
HOMES = {
    "hydra": {"cli"}, "omegaconf": {"cli"}, "lightning": {"training", "cli"}, "wandb": {"training", "cli"},
    "diffusers": {"utils", "networks", "data", "teachers", "cli"}, "transformers": {"utils", "data", "evaluation"},
}  # fmt: skip
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


def room_of(module: str) -> str:
    return (module + ".").split(".")[1]


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The modules that a file imports, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
            names |= submodules or {node.module}
    return frozenset(names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_rooms_on_lower_floors(path: Path) -> None:
    room = room_of(name_of(path))
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms} | {"": len(FLOORS)}
    for imported in imports_of(path):
        other = room_of(imported)
        if imported in NAMES and other not in ("", room):
            assert floor[other] < floor[room], f"{name_of(path)} imports {imported}"
        home = HOMES.get(imported.split(".")[0])
        assert home is None or room in home, f"{imported} does not live in {room}"


def test_every_module_is_in_a_room() -> None:
    assert {room_of(name) for name in NAMES} - {""} == {room for rooms in FLOORS for room in rooms}
    assert [path.name for path in MODULES if path.parent == SOURCE / "fgm"] == ["__init__.py"]


def test_no_circle_of_files_imports_each_other() -> None:
    graph = {name_of(path): {name for name in imports_of(path) & NAMES if name != name_of(path)} for path in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_flow_imports_only_torch_and_pydantic() -> None:
    allowed = {"torch", "pydantic", "fgm"} | set(__import__("sys").stdlib_module_names)
    for path in (SOURCE / "fgm" / "flow").glob("*.py"):
        outside = {name.split(".")[0] for name in imports_of(path)} - allowed
        assert not outside, f"{path.name} imports {outside}"


def test_files_and_functions_stay_readable() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (*MODULES, *Path(__file__).parent.rglob("*.py"))}
    for path, lines in lengths.items():
        assert lines <= 300, f"{path.name} has {lines} lines"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.body[0].lineno < 40, f"{path.name}: {node.name} is too long"
    assert median(lengths[path] for path in MODULES) <= 160
