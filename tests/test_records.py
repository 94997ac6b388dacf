"""A value is never shown without protocol and n; tables are what the runs say; old rows stay."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fgm.cli.config import digest, read_recipe, recipes
from fgm.cli.recording import git, provenance
from fgm.cli.studies.definition import sweeps
from fgm.cli.table import ROOT, render, table
from fgm.utils.files import replacing
from fgm.utils.records import Measurement, append_row, read_rows

INDEX = (ROOT / "experiments" / "README.md").read_text()


def run(value: float, seed: int = 0, study: str = "a") -> dict[str, Any]:
    results = [
        Measurement("fd", value, 100, "features-12345678", 1, "ema").row(),
        Measurement("fd", 2.0, 100, "features-12345678", 50, "teacher").row(),
        Measurement("fd", 0.5, 30, "floor: held-out; features-12345678").row(),
    ]
    return {"seed": seed, "study_digest": study, "device": "cpu, 1 threads", "train_s": 60.0, "results": results}


def written(rows: list[dict[str, Any]], experiments: Path) -> Path:
    for row in rows:
        append_row(experiments / "toy" / "runs.jsonl", row)
    return experiments


@pytest.mark.parametrize("protocol, n", [("", 10), ("p", 0)])
def test_a_value_without_protocol_or_n_is_refused(protocol: str, n: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never shown without"):
        Measurement("fd", 1.0, n, protocol)
    bad = run(1.0)
    bad["results"][0] |= {"protocol": protocol, "n": n}
    with pytest.raises(ValueError, match="never shown without"):
        table(["toy"], written([bad], tmp_path))


def test_a_row_comes_back_with_what_stands_beside_its_value() -> None:
    told = Measurement("geneval", 0.5, 40, "GenEval rules", 1, "ema", {"ci95": [0.4, 0.6], "counting": 0.2})
    assert told.row()["counting"] == 0.2 and "extra" not in told.row()
    assert Measurement.from_row(told.row()) == told


def test_a_table_shows_mean_and_sd_over_the_seeds_of_the_newest_config(tmp_path: Path) -> None:
    rows = [run(9.0, study="old"), run(1.0), run(2.0, seed=1), run(100.0, seed=2), run(3.0, seed=2)]
    text = table(["toy"], written(rows, tmp_path))
    assert "| one step, ema | 1 | 2 ± 1 |" in text
    assert "| teacher's ODE | 50 | 2 |" in text
    assert "3 seeds, 1.0 min training on cpu, 1 thread\n" in text
    assert "fd: features-12345678, n = 100" in text
    assert len(read_rows(tmp_path / "toy" / "runs.jsonl")) == 5


def test_a_run_that_differs_from_its_recipe_does_not_stand_for_it(tmp_path: Path) -> None:
    """A trial of a few cycles is the last row, and what the recipe was measured at stays; alone, it says what it is."""
    trial = run(7.0, study="other") | {"differs": ["training.max_steps=20", "method.t_star=0.9"]}
    assert "| one step, ema | 1 | 1 |" in table(["toy"], written([run(1.0), trial], tmp_path / "both"))
    alone = table(["toy"], written([trial], tmp_path / "alone"))
    assert (
        "**toy** with training.max_steps=20 method.t_star=0.9, 1 seed" in alone and "| one step, ema | 1 | 7 |" in alone
    )


def test_another_seed_machine_or_place_is_the_same_experiment() -> None:
    alike = ["seed=3", "trainer.accelerator=cpu", "outputs=elsewhere", "logger=csv"]
    assert read_recipe("digits_fgm", alike)["differs"] == []
    other = read_recipe("digits_fgm", [*alike, "training.max_steps=20"])
    assert other["differs"] == ["training.max_steps=20"]
    assert digest(other) == digest(other | {"differs": []})


def test_a_row_names_the_device_that_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not merely one that is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some card")
    told = [provenance(read_recipe("digits_fgm", [f"trainer.accelerator={name}"])) for name in ("auto", "cpu")]
    assert told[0]["device"] == "some card" and told[1]["device"] == "cpu, 1 thread"


def test_only_what_stands_between_the_marks_is_rewritten(tmp_path: Path) -> None:
    experiments = written([run(1.0)], tmp_path)
    document = "before\n<!-- table: toy -->\nstale\n<!-- end -->\nafter\n"
    fresh = render(document, experiments)
    assert fresh.startswith("before\n<!-- table: toy -->\n**toy**") and fresh.endswith("<!-- end -->\nafter\n")
    assert "stale" not in fresh and render(fresh, experiments) == fresh


def test_a_table_shows_the_metrics_that_its_mark_names_and_each_protocol_once(tmp_path: Path) -> None:
    row = run(1.0)
    row["results"] += [result | {"metric": "kid", "value": 7.0} for result in row["results"]]
    fresh = render("<!-- table: toy (kid) -->\n<!-- end -->", written([row], tmp_path))
    assert "| sampler | calls | kid |" in fresh and "fd" not in fresh and "| one step, ema | 1 | 7 |" in fresh
    assert "fd, kid: features-12345678, n = 100." in render("<!-- table: toy -->\n<!-- end -->", tmp_path)


def cut_short(path: Path, shared: bool) -> None:
    with replacing(path, shared) as temporary:
        temporary.write_text("ne")
        raise OSError("full")


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(shared: bool, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        cut_short(path, shared)
    assert path.read_text() == "old"
    with replacing(path, shared) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_weights_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    """safetensors writes for the owner alone, and runs lie where others read them."""
    (tmp_path / "any").touch()
    with replacing(tmp_path / "weights.safetensors") as temporary:
        save_file({"w": torch.zeros(1)}, temporary)
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_every_folder_of_experiments_belongs_to_a_recipe_and_has_a_verdict() -> None:
    for folder in (path.parent for path in (ROOT / "experiments").glob("*/runs.jsonl")):
        assert folder.name in [*recipes(), *sweeps(), "bench", "identity", "memory"]
        diary = (folder / "README.md").read_text()
        for word in ("Question", "Command", "Finding", "Verdict"):
            assert f"**{word}" in diary, f"{folder.name} says no {word.lower()}"
        for row in read_rows(folder / "runs.jsonl"):
            assert row["recipe"] in recipes()
            assert folder.name in (row["recipe"], row.get("study"), "bench", "memory")


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
