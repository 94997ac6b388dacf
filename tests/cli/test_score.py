"""score: what it writes and prints, and bad input is one line that leaves no output."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from geneval_files import correct_detections, example_prompts, write_layout, write_prompts
from tiny_runs import Said, refused

import fgm.cli.score
from fgm.data.pixels import quantise
from fgm.data.shapes.scenes import draw_scenes, render
from fgm.evaluation.shapes.metric import RULES
from fgm.utils.random import keyed_generator

PROMPTS = example_prompts(2)


@pytest.fixture
def geneval(tmp_path: Path) -> list[str]:
    """Arguments for images of which the first of every prompt is correct and the second is empty."""
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
    output = capsys.readouterr().out
    assert "geneval 0.5000" in output and "prompts 1.0000" in output and "detections from seen.json" in output
    content = json.loads((tmp_path / "layout" / "score" / "results.json").read_text())
    (row,), evaluation = content["results"], content["evaluation"]
    assert content["schema"] == 2 and evaluation["source"]["kind"] == "geneval" and content["env"]["torch_fidelity"]
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
        [f"geneval_dir={tmp_path}/layout", f"metadata={tmp_path}/prompts.jsonl"] + ["samples=1", "detector=shapes"]
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
        "detector = yolo: must be one of json, mask2former, shapes",
    ),
    "no weights": (lambda a: [*a, "detector=mask2former"], "detector_dir= is missing"),
    "too few samples": (lambda a: [*a, "samples=3"], "of 36 samples are missing"),
    "unknown class": (with_unknown_class, "entry 0: unknown class 'unicorn'"),
    "unknown vocabulary": (lambda a: [*a, "vocabulary=x"], "vocabulary = x: must be one of geneval, shapes"),
    "wrong vocabulary": (lambda a: [*a, "detector=shapes"], "line 1, include[0]: unknown class"),
    "no folder": (lambda a: [*a, "geneval_dir=/no/where"], "/no/where is missing: it should hold folders"),
}


@pytest.mark.parametrize("case, message", SCORE.values(), ids=SCORE)
def test_bad_arguments_are_one_line_and_leave_no_output(
    case: Callable[[list[str]], list[str]], message: str, geneval: list[str], tmp_path: Path, capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert message in refused(fgm.cli.score.main, case(geneval), capsys, monkeypatch)
    assert not (tmp_path / "layout" / "score").exists()
