"""Teachers by the name of their run: one that is not finished is as one that is missing."""

from pathlib import Path

import pytest

from fgm import teacher
from fgm.config import read_recipe
from fgm.errors import Refusal
from fgm.records import write_json
from fgm.run_config import write_yaml


def test_a_teacher_that_was_cut_off_while_it_was_measured_is_not_trained_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights lie there, and its run would go on, against teacher.train=false and in every process of several."""
    own = read_recipe("digits_teacher", [f"outputs={tmp_path}"])
    run_dir = Path(own["run_dir"])
    run_dir.mkdir(parents=True)
    write_yaml(own, run_dir / "config.yaml")
    (run_dir / teacher.WEIGHTS).touch()
    node = read_recipe("digits_fgm", [f"outputs={tmp_path}"])["teacher"]
    teacher.require(node)
    with pytest.raises(Refusal, match=r"is missing and teacher\.train is false: make train EXP=digits_teacher"):
        teacher.require(node | {"train": False})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refusal, match="the teacher digits_teacher is not trained yet"):
        teacher.require(node)
    write_json(run_dir / "results.json", {})
    teacher.require(node | {"train": False})
