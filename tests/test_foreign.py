"""What is wrong with a class of one's own is one line before anything is imported; what is uncertain passes."""

import sys
from pathlib import Path

import pytest

from fgm.cli.foreign import check_foreign
from fgm.utils.errors import UserError

SOURCE = """
import nowhere_at_all
from elsewhere import Known
raise RuntimeError("imported")

class Own:
    def __init__(self, file: str, width: int = 3): ...

class Heir(Known): ...

def made(**anything): ...
"""
WRONG = {
    "no module": (
        {"_target_": "own_techer.Own"},
        r"^teacher\._target_ = own_techer\.Own: there is no own_techer\.py in",
    ),
    "no module named": ({"_target_": "Own"}, r"^teacher\._target_ = Own: there is no module before its name$"),
    "no class": ({"_target_": "own_teacher.Onw"}, r"own_teacher\.py defines no Onw; did you mean Own\?$"),
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
}
RIGHT = [
    {"_target_": "own_teacher.Own", "file": "w.pt"},
    {"_target_": "own_teacher.Known", "any": 1},
    {"_target_": "own_teacher.Heir", "any": 1},
    {"_target_": "own_teacher.made", "any": 1},
    {"_target_": "torch.nn.Linear", "in_features": 1},
    {"_target_": "builtins.object"},
]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_teacher.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("node, message", WRONG.values(), ids=WRONG)
def test_a_class_of_ones_own_that_does_not_fit_is_refused(node: object, message: str, module: None) -> None:
    with pytest.raises(UserError, match=message):
        check_foreign({"teacher": node, "path": {"_target_": "fgm.flow.paths.RectifiedPath"}})
    assert "own_teacher" not in sys.modules


@pytest.mark.parametrize("node", RIGHT, ids=lambda node: node["_target_"])
def test_what_a_source_does_not_tell_for_certain_passes(node: dict[str, object], module: None) -> None:
    check_foreign({"teacher": node})
    assert "own_teacher" not in sys.modules
