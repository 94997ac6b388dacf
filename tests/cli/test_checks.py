"""A _target_ that does not exist or does not take its arguments is one line, the user's own classes included."""

from pathlib import Path
from typing import Any

import pytest

from fgm.cli.checks import check
from fgm.utils.errors import UserError

SOURCE = """
class Own:
    def __init__(self, file: str, width: int = 3): ...
    @staticmethod
    def load(file: str): ...

def made(**anything): ...
"""
WRONG = {
    "no module": ({"_target_": "own_techer.Own"}, r"^teacher\._target_ = own_techer\.Own: there is no own_techer\.py"),
    "no module named": ({"_target_": "Own"}, r"^teacher\._target_ = Own: there is no module before its name$"),
    "no class": ({"_target_": "own_teacher.Onw"}, r"own_teacher defines no Onw; did you mean Own\?$"),
    "no method": ({"_target_": "own_teacher.Own.laod"}, r"defines no laod; did you mean load\?$"),
    "no argument": ({"_target_": "own_teacher.Own"}, r"^teacher: own_teacher\.Own also needs file$"),
    "mistyped argument": (
        {"_target_": "own_teacher.Own", "file": "w.pt", "wdith": 3},
        r"^teacher\.wdith: own_teacher\.Own has no such setting; did you mean width\?$",
    ),
    "of the wrong type": (
        {"_target_": "own_teacher.Own", "file": "w.pt", "width": "wide"},
        r"^teacher\.width = wide: must be of type int$",
    ),
    "within a list": ([{"_target_": "own_teacher.Onw"}], r"^teacher\[0\]\._target_"),
    "fails at import": ({"_target_": "own_broken.Own"}, r"importing own_broken fails: RuntimeError: at import$"),
    "misses a package": ({"_target_": "own_needy.Own"}, r"needs nowhere_at_all, which is not installed$"),
}
RIGHT = [
    {"_target_": "own_teacher.Own", "file": "w.pt"},
    {"_target_": "own_teacher.Own.load", "file": "w.pt"},
    {"_target_": "own_teacher.made", "any": 1},
    {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    {"_target_": "torch.nn.Linear", "_partial_": True},
    {"_target_": "builtins.object"},
]


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_teacher.py").write_text(SOURCE)
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('at import')")
    (tmp_path / "own_needy.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("node, message", WRONG.values(), ids=WRONG)
def test_a_target_that_does_not_fit_is_refused(node: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check({"teacher": node, "path": {"_target_": "fgm.flow.paths.RectifiedPath"}})


@pytest.mark.parametrize("node", RIGHT, ids=lambda node: node["_target_"])
def test_a_target_that_fits_passes(node: dict[str, Any]) -> None:
    check({"teacher": node})
