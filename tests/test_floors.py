"""The house stands: a room imports only what is below it, and each library lives where the design puts it."""

import ast
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FLOORS = {
    0: (
        "errors", "paths", "times", "losses", "solvers", "analytic", "streams", "pretrained", "archives", "pickles",
        "files", "fingerprints",
    ),
    1: ("networks", "pixels"),
    2: ("records", "markdown", "held_weights", "text", "data", "evaluation"),
    3: ("training", "benchmarks"),
    4: (
        "signatures", "arguments", "printing", "config", "run_config", "foreign", "build", "teacher", "train",
        "finished", "evaluators", "evaluate", "cache_prompts", "sample", "export", "publish", "ship", "shipped",
        "score", "reference", "bench", "recording", "table", "run_table", "summary", "overview", "memory", "stand_ins",
        "studies", "study_identity", "sweep", "report", "dashboard",
    ),
}  # fmt: skip
HOMES = {"hydra": {4}, "omegaconf": {4}, "lightning": {3}, "wandb": {3}, "diffusers": {1, 4}, "transformers": {2}}
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def floor_of(module: str) -> int:
    return next(floor for floor, rooms in FLOORS.items() if room_of(module) in rooms)


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "fgm"
            names |= {f"fgm.{alias.name}" for alias in node.names} if inside else {node.module}
    return names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_what_stands_below_it(path: Path) -> None:
    module = name_of(path)
    if module == "fgm":
        assert imports_of(path) == set()
        return
    floor = floor_of(module)
    for imported in imports_of(path):
        if imported.startswith("fgm."):
            assert floor_of(imported) <= floor, f"{module} (floor {floor}) imports {imported}"
        home = HOMES.get(imported.split(".")[0])
        assert home is None or floor in home, f"{imported} does not live on floor {floor} ({module})"


def test_floor_0_needs_torch_alone() -> None:
    allowed = {"torch", "fgm"} | set(__import__("sys").stdlib_module_names)
    for room in FLOORS[0]:
        outside = {name.split(".")[0] for name in imports_of(SOURCE / "fgm" / f"{room}.py")} - allowed
        assert not outside, f"{room} imports {outside}"


def test_no_two_modules_import_each_other() -> None:
    graph = {name_of(path): {i for i in imports_of(path) if i.startswith("fgm.")} for path in MODULES}
    lazy = {("fgm.teacher", "fgm.train")}  # inside a function: a missing teacher is trained by the command itself
    for a, targets in graph.items():
        for b in targets:
            mutual = a in graph.get(b, set()) and (a, b) not in lazy and (b, a) not in lazy
            assert not mutual, f"{a} and {b} import each other"


def test_no_two_rooms_import_each_other() -> None:
    """On one floor too; entry points, which are single modules, are told by the test above."""
    rooms: dict[str, set[str]] = {}
    for path in MODULES:
        rooms.setdefault(room_of(name_of(path)), set()).update(map(room_of, imports_of(path)))
    below = [room for floor in (0, 1, 2, 3) for room in FLOORS[floor]]
    mutual = [(a, b) for a in below for b in rooms[a] & set(below) if a < b and a in rooms[b]]
    assert not mutual


def test_files_and_functions_stay_readable() -> None:
    """Tests too, but for the median."""
    lengths = {path: len(path.read_text().splitlines()) for path in (*MODULES, *Path(__file__).parent.rglob("*.py"))}
    for path, lines in lengths.items():
        assert lines <= 300, f"{path.name} has {lines} lines"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.body[0].lineno < 30, f"{path.name}: {node.name} is too long"
    assert median(lengths[path] for path in MODULES) <= 120
