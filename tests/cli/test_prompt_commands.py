"""Commands on a text-conditional model: evaluate, export, evaluate the folder, sample by prompt."""

import json
from pathlib import Path

import pytest
from tiny_runs import SHAPES, TINY, Said, finished, refused, results_of

import fgm.cli.evaluate
import fgm.cli.export
import fgm.cli.sample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return finished(tmp_path_factory.mktemp("prompts"), "digits_fgm", SHAPES)


def test_an_exported_folder_has_the_metrics_of_its_run(run: list[str], tmp_path: Path, capsys: Said) -> None:
    fgm.cli.evaluate.main(run)
    memory = results_of(capsys.readouterr().out)
    fgm.cli.export.main([*run, "format=png", f"out={tmp_path / 'png'}"])
    labels = json.loads((tmp_path / "png" / "dataset.json").read_text())["labels"]
    assert [label for _, label in labels] == list(range(24))
    settings = ["evaluator.suite.prompts_per_tag=4", "evaluator.suite.images_per_tag=4"]
    fgm.cli.evaluate.main([
        f"samples_dir={tmp_path / 'png'}", "evaluator=shape_eval", "data=shapes", *settings, f"outputs={tmp_path}",
    ])  # fmt: skip
    folder = results_of(capsys.readouterr().out)
    values = [{r["metric"]: (r["value"], r["n"]) for r in row["results"] if r["weights"] in ("ema", "folder")}
              for row in (memory, folder)]  # fmt: skip
    assert values[0] == values[1] and values[0]["shapeeval"][1] == 24 and "stray" in values[0]
    assert memory["evaluation"]["suite"]["prompts"] == folder["evaluation"]["suite"]["prompts"]


def test_samples_depend_on_the_prompt(run: list[str], tmp_path: Path, capsys: Said) -> None:
    pictures = [tmp_path / name for name in ("red.png", "blue.png", "own.png")]
    for path, prompt in zip(pictures, ("a photo of a red circle", "a photo of a blue square", ""), strict=True):
        fgm.cli.sample.main([*run, "n=4", f"prompt={prompt}", f"out={path}"])
    assert "own.png: 4 samples, one network call each" in capsys.readouterr().out
    assert len({path.read_bytes() for path in pictures}) == 3


def test_an_impossible_prompt_is_one_line(
    run: list[str], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*run, "prompt=a photo of a crimson circle"]
    assert "unknown word 'crimson'" in refused(fgm.cli.sample.main, arguments, capsys, monkeypatch)
    digits = finished(tmp_path, "digits_fgm", TINY)
    line = refused(fgm.cli.sample.main, [*digits, "prompt=three"], capsys, monkeypatch)
    assert "prompt = 'three': digits_fgm is no model with prompts" in line
