"""score and reference: what they write is read again, and bad input is one line and exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from geneval_files import correct_detections, example_prompts, write_layout, write_prompts
from tiny_runs import Said, refused

import fgm.cli.reference
import fgm.cli.score
from fgm.data.images import Digits
from fgm.data.pixels import quantise
from fgm.data.shapes.scenes import draw_scenes, render
from fgm.evaluation.feature_metrics import DigitMetrics
from fgm.evaluation.folders import export_images
from fgm.evaluation.shapes.metric import RULES
from fgm.evaluation.sources import DatasetSource
from fgm.utils.random import keyed_generator

PROMPTS = example_prompts(2)


def test_a_reference_holds_the_moments_of_the_suite(tmp_path: Path, capsys: Said) -> None:
    fgm.cli.reference.main(["data=digits", f"out={tmp_path / 'refs.npz'}"])
    with np.load(tmp_path / "refs.npz") as moments:
        assert set(moments) == {"mu", "sigma", "n"} and moments["n"] == len(Digits().split["train"][0])
        expected = DigitMetrics().reference.moments
        np.testing.assert_allclose(moments["mu"], expected.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(moments["sigma"], expected.covariance.numpy(), atol=1e-5)
    assert "mu and sigma of 1433 images, 32 features of digits" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["refs.npz"]


def test_a_reference_of_a_folder_is_that_of_its_images(tmp_path: Path) -> None:
    source = DatasetSource.of_data(Digits(), "digits", "test", 60)
    export_images(source, tmp_path / "png", "edm", batch=60)
    asked = [f"samples_dir={tmp_path / 'png'}", "recursive=true", "n=50", f"out={tmp_path / 'refs.npz'}"]
    fgm.cli.reference.main(asked)
    with np.load(tmp_path / "refs.npz") as moments:
        features = DigitMetrics().features(source.take(range(50)).x, None)["features"].double().numpy()
        np.testing.assert_allclose(moments["mu"], features.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments["sigma"], np.cov(features, rowvar=False), atol=1e-10)


@pytest.fixture
def geneval(tmp_path: Path) -> list[str]:
    """Pictures of which the first sample of every prompt shows what was asked for, and the second nothing."""
    write_layout(tmp_path / "layout", PROMPTS, lambda i, k: np.full((8, 8, 3), 9, np.uint8), per_prompt=2)
    write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    seen = {f"{i:05d}/samples/{k:05d}.png": [] if k else entries(i) for i in range(len(PROMPTS)) for k in (0, 1)}
    (tmp_path / "seen.json").write_text(json.dumps(seen))
    return [
        f"geneval_dir={tmp_path / 'layout'}", f"metadata={tmp_path / 'prompts.jsonl'}",
        f"detections={tmp_path / 'seen.json'}", "samples=2",
    ]  # fmt: skip


def entries(index: int) -> list[dict]:
    found = [vars(one) for one in correct_detections(PROMPTS[index])]
    return [{"class": d["cls"], "box": d["box"], "score": d["score"], "color": d["color"] or "red"} for d in found]


def test_score_of_a_folder_by_recorded_detections(geneval: list[str], tmp_path: Path, capsys: Said) -> None:
    fgm.cli.score.main(geneval)
    said = capsys.readouterr().out
    assert "geneval 0.5000" in said and "prompts 1.0000" in said and "detections from seen.json" in said
    told = json.loads((tmp_path / "layout" / "score" / "results.json").read_text())
    (row,), evaluation = told["results"], told["evaluation"]
    assert told["schema"] == 1 and evaluation["source"]["kind"] == "geneval" and told["env"]["torch_fidelity"]
    assert len(evaluation["suite"]["detections_sha256"]) == len(evaluation["suite"]["metadata_sha256"]) == 64
    assert (row["value"], row["n"], row["weights"]) == (0.5, 2 * len(PROMPTS), "folder") and row["ci95"][0] <= 0.5
    lines = (tmp_path / "layout" / "score" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(PROMPTS)


def test_true_renders_score_one_by_the_exact_detector(tmp_path: Path, capsys: Said) -> None:
    scenes = draw_scenes(12, keyed_generator("score", index=0), 32, 4)
    images = quantise(render(scenes, 32)).movedim(1, -1).numpy()
    by_prompt = dict(zip(scenes.captions.metadata(), images, strict=True))
    prompts = list(by_prompt)
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    write_layout(tmp_path / "layout", prompts, lambda index, _: by_prompt[prompts[index]], per_prompt=1)
    fgm.cli.score.main(
        [f"geneval_dir={tmp_path}/layout", f"metadata={tmp_path}/prompts.jsonl"]
        + ["samples=1", "detector=shapes", "vocabulary=shapes"]
    )
    assert "shapeeval 1.0000" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "layout" / "score" / "results.json").read_text())["results"]
    assert row["protocol"].startswith(f"{RULES.protocol}; "), "the rules of the suite, under the suite's name"


def with_unknown_class(arguments: list[str]) -> list[str]:
    path = Path(next(a for a in arguments if a.startswith("detections=")).partition("=")[2])
    path.write_text(path.read_text().replace(f'"class": "{PROMPTS[0].include[0].cls}"', '"class": "unicorn"', 1))
    return arguments


SCORE = {
    "no metadata": (lambda a: [x for x in a if "metadata" not in x], "metadata= is missing"),
    "no detections": (lambda a: [x for x in a if "detections" not in x], "detections= is missing"),
    "unknown detector": (
        lambda a: [*a, "detector=yolo"],
        "detector = yolo: unknown; there are json, mask2former, shapes",
    ),
    "no weights": (lambda a: [*a, "detector=mask2former"], "detector_dir= is missing"),
    "too few samples": (lambda a: [*a, "samples=3"], "of 36 samples are missing"),
    "unknown class": (with_unknown_class, "entry 0: unknown class 'unicorn'"),
    "unknown vocabulary": (lambda a: [*a, "vocabulary=x"], "vocabulary = x: unknown; there are"),
    "wrong vocabulary": (lambda a: [*a, "detector=shapes"], "knows only the classes of vocabulary=shapes"),
    "no folder": (lambda a: [*a, "geneval_dir=/no/where"], "/no/where is missing: it should hold folders"),
}


@pytest.mark.parametrize("case, message", SCORE.values(), ids=SCORE)
def test_bad_arguments_are_one_line_and_leave_no_output(
    case: Callable[[list[str]], list[str]], message: str, geneval: list[str], tmp_path: Path, capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert message in refused(fgm.cli.score.main, case(geneval), capsys, monkeypatch)
    assert not (tmp_path / "layout" / "score").exists()


REFERENCE = {
    "unknown data": (["data=digit"], "data = digit: unknown; did you mean digits"),
    "points": (["data=ring"], "data = ring: holds points of shape (2,), not images"),
    "unlimited": (["data=shapes"], "data = shapes is unlimited: say how many with n="),
    "unknown split": (["data=digits", "split=validation"], "split = validation: digits has train, test"),
    "neither": ([], "give data=<name> or samples_dir=<folder>"),
    "too many": (["data=digits", "n=5000"], "1433 images, but n = 5000 needed"),
    "no features": (
        ["data=digits", "evaluator=shape_eval", "evaluator.suite.size=32", "evaluator.suite.shapes=4"],
        "evaluator = shape_eval has no features; choose one that has, such as digits",
    ),
    "no npz": (["data=digits", "out=refs.npy"], "must end with .npz"),
}


@pytest.mark.parametrize("own, message", REFERENCE.values(), ids=REFERENCE)
def test_what_is_no_reference_is_one_line(
    own: list[str], message: str, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"out={tmp_path / 'refs.npz'}", *own]
    assert message in refused(fgm.cli.reference.main, arguments, capsys, monkeypatch)
    assert list(tmp_path.iterdir()) == []
