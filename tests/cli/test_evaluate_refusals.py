"""evaluate and export: what cannot be measured or exported is one line and exit code 2, and leaves nothing behind."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from ranks import on_ranks
from tiny_runs import Said, finished, nan_weights, refused

import fgm.cli.evaluate
import fgm.cli.export
import fgm.cli.sample
from fgm.cli.evaluate import make_evaluation
from fgm.cli.runs import require_device
from fgm.utils.errors import UserError, entry, rank

Asked = Callable[[str], list[str]]


@pytest.fixture
def asked(digits_run: list[str], digits_png: Path, tmp_path: Path) -> Asked:
    """Words as arguments: {cut} is the folder with a picture cut short, {nan} the run with weights of nan."""

    def arguments(words: str) -> list[str]:
        places = {"run": " ".join(digits_run), "png": digits_png, "tmp": tmp_path}
        if "{cut}" in words:
            places["cut"] = cut_short(shutil.copytree(digits_png, tmp_path / "in"))
        if "{nan}" in words:
            places["nan"] = " ".join(nan_weights(digits_run, tmp_path))
        return words.format(**places).split()

    return arguments


def cut_short(folder: Path) -> Path:
    file = folder / "000007.png"
    file.write_bytes(file.read_bytes()[:-5])
    return folder


BY = "samples_dir={png} evaluator="
EVALUATE = {
    "truncated PNG": (
        "samples_dir={cut} evaluator=digits outputs={tmp}/out",
        r"000007\.png: damaged PNG \(truncated\)",
    ),
    "fewer than promised": (f"{BY}digits n=61", "60 PNGs, but n = 61 needed"),
    "too few to measure": (
        f"{BY}digits n=20 outputs={{tmp}}/out",
        "fd in the 32 features of small-classifier needs 33 samples or more, not 20",
    ),
    "NaN samples": ("{nan}", r"generator\.safetensors: .* values that are not finite; its training has diverged"),
    "unknown evaluator": (f"{BY}digit", "there is no evaluation=digit; did you mean digits"),
    "unknown evaluator of a run": ("{run} evaluator=xyz", "there is no evaluation=xyz; there"),
    "evaluator without data": (
        f"{BY}points",
        "evaluator = points compares with data, and a folder does not say with which: give data=<name>",
    ),
    "evaluator of points": (f"{BY}points data=digits", "this evaluator measures points, and Digits holds images"),
    "data of points": (
        f"{BY}points data=ring outputs={{tmp}}/out",
        r"points are measured at \(2,\), and these samples are \(1, 8, 8\)",
    ),
    "evaluator of prompts without data": (
        f"{BY}shape_eval",
        r"evaluator\.suite\.size takes data\.size, which this config has not: choose another data=$",
    ),
    "files that an evaluator needs": (
        f"{BY}geneval data=shapes",
        "^error: evaluator.suite.detector.directory = null: put facebook/mask2former-swin-small-coco-instance",
    ),
    "unknown data": (f"{BY}points data=rings", "there is no data=rings; did you mean ring"),
    "unknown evaluator setting": (
        f"{BY}digits evaluator.suite.weight=x",
        "there is no setting evaluator.suite.weight",
    ),
    "setting of no evaluator": (
        "{run} evaluator.n=5",
        "there is no setting evaluator.n",
    ),
    "no evaluator": ("samples_dir={png}", "evaluator= is missing"),
    "no folder": ("samples_dir={png}x evaluator=digits", "is no folder"),
    "unknown setting": ("samples_dir={png} evaluater=digits", "there is no setting evaluater; did you mean evaluator"),
    "no value": ("{run} n", "'n' is not of the form key=value"),
    "no number": ("{run} n=many", "n = many: must be of type int"),
    "no finished run": ("{run} seed=9", "holds no finished run: make train EXP=digits_fgm"),
}


@pytest.mark.parametrize("words, message", EVALUATE.values(), ids=EVALUATE)
def test_what_cannot_be_measured_is_one_line(
    words: str, message: str, asked: Asked, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.search(message, refused(fgm.cli.evaluate.main, asked(words), capsys, monkeypatch))
    assert not list(tmp_path.glob("**/evaluation/*"))


def test_a_complaint_names_settings_as_the_command_takes_them_and_modules_as_they_are(tmp_path: Path) -> None:
    line = {"tag": "single_object", "include": [{"class": "unicorn", "count": 1}], "prompt": "a photo of a unicorn"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    detector = {"_target_": "fgm.evaluation.shapes.detector.ShapeDetector"}
    suite = {"_target_": "fgm.evaluation.geneval.metric.GenEvalSuite", "detector": detector}
    node = {
        "_target_": "fgm.evaluation.evaluator.Evaluator",
        "suite": suite | {"metadata": str(tmp_path / "prompts.jsonl")},
    }
    with pytest.raises(UserError, match="unknown class 'unicorn'; "):
        make_evaluation(node)
    inception = {"_target_": "fgm.evaluation.pretrained_features.Inception", "weights": "nowhere"}
    features = {
        "_target_": "fgm.evaluation.feature_metrics.FeatureMetrics",
        "extractor": inception,
        "reference": "r.npz",
    }
    with pytest.raises(UserError, match=r"give evaluator\.suite\.extractor\.weights=<path>"):
        make_evaluation(node | {"suite": features})


def as_command(arguments: list[str], folder: Path) -> None:
    """Run evaluate as one of several ranks, with its stderr in a file."""
    sys.argv = ["command", *arguments]
    with (folder / f"{rank()}.txt").open("w") as file, redirect_stderr(file), pytest.raises(SystemExit, match="2"):
        entry(fgm.cli.evaluate.main, None)


@pytest.mark.parametrize("case", ["truncated PNG", "unknown evaluator"])
def test_of_several_ranks_whoever_says_it_says_the_line(case: str, asked: Asked, tmp_path: Path) -> None:
    words, message = EVALUATE[case]
    on_ranks(as_command, asked(words), tmp_path)
    lines = [line for r in range(2) for line in (tmp_path / f"{r}.txt").read_text().splitlines()]
    assert 1 <= len(lines) <= 2 and all(re.match(rf"error( on rank 1)?: .*{message}", line) for line in lines)


EXPORT = {
    "unknown format": ("format=pngs", "format = pngs: must be one of png, edm, geneval, diffusers"),
    "no prompts": (
        "format=geneval",
        "format = geneval: digits_fgm is no model with prompts; choose format=png or edm",
    ),
    "no number": ("n=0", "n = 0: must lie in [1, inf)"),
    "a file for a folder": ("out=README.md", "README.md is a file, and a folder is needed"),
    "a place that is taken": ("out={png}", "is there already, and is not written to: delete it or give another out="),
}


@pytest.mark.parametrize("own, message", EXPORT.values(), ids=EXPORT)
def test_what_cannot_be_exported_is_one_line(
    own: str, message: str, asked: Asked, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message in refused(fgm.cli.export.main, asked(f"{{run}} {own}"), capsys, monkeypatch)


SAMPLE = {
    "no picture": ("out=README.md", "out = README.md must end with .png, .jpg, .svg, .pdf"),
    "a file for a folder": ("out=README.md/drawn.png", "README.md is a file, and a folder is needed"),
    "unknown setting": ("m=3", "there is no setting m; at the root there are n, sample_seed, prompt, out, data,"),
    "where its own stand": ("m=3", "at the root there are n, sample_seed, prompt, out,"),
}


@pytest.mark.parametrize("own, message", SAMPLE.values(), ids=SAMPLE)
def test_what_cannot_be_drawn_is_one_line(
    own: str, message: str, asked: Asked, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message in refused(fgm.cli.sample.main, asked(f"{{run}} {own}"), capsys, monkeypatch)


def test_a_machine_without_the_devices_asked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer.accelerator = gpu: PyTorch finds no GPU here; give trainer.acc"):
        require_device({"accelerator": "gpu", "devices": 1})
    require_device({"accelerator": "auto", "devices": 2})
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(UserError, match=r"trainer.devices = 2: PyTorch finds 1 here"):
        require_device({"accelerator": "auto", "devices": 2})
    require_device({"accelerator": "cpu", "devices": 2})


def test_points_are_not_exported_and_nan_leaves_nothing(
    asked: Asked, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = finished(tmp_path / "points", "mixture_fgm", ["method.generator_init=random"])
    assert "draws points of shape (2,)" in refused(fgm.cli.export.main, points, capsys, monkeypatch)
    broken = asked("{nan} out={tmp}/new/png")
    assert "values that are not finite" in refused(fgm.cli.export.main, broken, capsys, monkeypatch)
    assert not (tmp_path / "new").exists()
