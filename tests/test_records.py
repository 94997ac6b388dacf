"""A value is never shown without protocol and n; tables are what the runs say; old rows stay."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fgm.cli.config import compose_experiment, digest, experiment_names
from fgm.cli.runs import git, provenance
from fgm.cli.sweep import sweeps
from fgm.cli.table import ROOT
from fgm.utils.files import replacing
from fgm.utils.records import Measurement, read_rows

INDEX = (ROOT / "experiments" / "README.md").read_text()


def test_a_row_comes_back_with_what_stands_beside_its_value() -> None:
    told = Measurement("geneval", 0.5, 40, "GenEval rules", 1, "ema", {"ci95": [0.4, 0.6], "counting": 0.2})
    assert told.row()["counting"] == 0.2 and "extra" not in told.row()
    assert Measurement.from_row(told.row()) == told


def test_another_seed_machine_or_place_is_the_same_experiment() -> None:
    alike = ["seed=3", "trainer.accelerator=cpu", "outputs=elsewhere", "logger=csv"]
    assert compose_experiment("digits_fgm", alike)["differs"] == []
    other = compose_experiment("digits_fgm", [*alike, "training.max_steps=20"])
    assert other["differs"] == ["training.max_steps=20"]
    assert digest(other) == digest(other | {"differs": []})


def test_a_row_names_the_device_that_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not merely one that is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some card")
    told = [provenance(compose_experiment("digits_fgm", [f"trainer.accelerator={name}"])) for name in ("auto", "cpu")]
    assert told[0]["device"] == "some card" and told[1]["device"] == "cpu, 1 thread"


def cut_short(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("ne")
        raise OSError("full")


@pytest.mark.parametrize("name", ["results.json", "r" * 250 + ".json"], ids=["short", "longest"])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        cut_short(path)
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == [name]


def test_weights_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    """safetensors writes for the owner alone, and runs lie where others read them."""
    (tmp_path / "any").touch()
    with replacing(tmp_path / "weights.safetensors") as temporary:
        save_file({"w": torch.zeros(1)}, temporary)
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_every_folder_of_experiments_belongs_to_a_recipe_and_has_a_verdict() -> None:
    for folder in (path.parent for path in (ROOT / "experiments").glob("*/runs.jsonl")):
        assert folder.name in [*experiment_names(), *sweeps(), "bench", "identity", "memory"]
        diary = (folder / "README.md").read_text()
        for word in ("Question", "Command", "Finding", "Verdict"):
            assert f"**{word}" in diary, f"{folder.name} says no {word.lower()}"
        for row in read_rows(folder / "runs.jsonl"):
            assert row["experiment"] in experiment_names()
            assert folder.name in (row["experiment"], row.get("study"), "bench", "memory")


def test_every_committed_row_is_of_code_in_the_history() -> None:
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("the history is not here")
    history = {commit[:12] for commit in git("log", "--format=%H").split()}
    found = git("grep", "-h", "-o", '"commit": "[^"]*"', "HEAD", "--", "experiments/*/runs.jsonl").splitlines()
    assert found and {line.split('"')[3] for line in found} <= history  # a + marks code with changes


UNRUN = sorted(p.parent for p in (ROOT / "experiments").glob("*/README.md") if not (p.parent / "runs.jsonl").exists())


@pytest.mark.parametrize("folder", UNRUN, ids=lambda folder: folder.name)
def test_a_page_without_runs_says_so_and_shows_its_command(folder: Path) -> None:
    page = (folder / "README.md").read_text()
    words = ["Question", "Command", "Needs", "Cost", "Expected", "Finding", "Verdict"]
    assert re.findall(r"^\*\*(\w+)\.\*\*", page, re.M) == words
    assert "Not yet run: needs the data and a GPU." in page and f"[{folder.name}]({folder.name}/README.md)" in INDEX
    told = re.search(r"`make train EXP=(\w+)[ `]", page)
    assert told and told[1] == folder.name
