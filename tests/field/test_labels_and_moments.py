"""Labels, moments, GenEval's folders and prompts as users have them: read rightly, or refused in one line."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from field_files import folder, one_line, png
from geneval_files import correct_detections, example_prompts, write_layout

from fgm.data.folders import ImageZip
from fgm.data.geneval import read_prompts
from fgm.data.prompts import JsonLines, TextFile
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.feature_metrics import DigitMetrics
from fgm.evaluation.frechet import Moments
from fgm.evaluation.geneval.folder import RecordedDetections, read_layout, score_folder
from fgm.evaluation.geneval.metric import GenEval
from fgm.evaluation.sources import FolderSource
from fgm.utils.random import keyed_generator

pytestmark = pytest.mark.field

# labels

LABELS: dict[str, tuple[list[Any], str]] = {
    "too large": ([999, 1, 2, 3], r"dataset\.json: the label of 000000\.png is 999; expected 0 to 9"),
    "negative": ([0, -1, 2, 3], r"dataset\.json: the label of 000001\.png is -1; expected 0"),
    "beyond 64 bits": ([0, 1, 10**30, 3], r"dataset\.json: the label of 000002\.png is 10+; expected 0"),
    "a fraction": ([0, 1, 2.0, 3], "labels must be a list of"),
    "true": ([0, 1, True, 3], "labels must be a list of"),
    "missing": ([0, 1, 2], r"no label for 000003\.png"),
}


@pytest.mark.parametrize("labels, message", LABELS.values(), ids=LABELS)
def test_wrong_label_is_named_in_folders_and_archives_before_features(
    labels: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.dumps({"labels": [[f"{i:06d}.png", label] for i, label in enumerate(labels)]})
    (folder(tmp_path / "images") / "dataset.json").write_text(content)
    suite = DigitMetrics()
    evaluator = Evaluator(suite, n=100, every=0)
    monkeypatch.setattr(suite, "require_samples", lambda n: None)
    monkeypatch.setattr(suite, "features", lambda *_: pytest.fail("features were computed"))
    one_line(message, lambda: evaluator.measure(FolderSource(tmp_path / "images")))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in (tmp_path / "images").glob("*"):
            archive.write(path, path.name)
    one_line(message, lambda: ImageZip(str(tmp_path / "x.zip"), 8, 10))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"labels": ' + "9" * 5000 + "}", "[]", "", "\ufeff{", '{"labels": 3}']
)
def test_file_of_labels_that_is_no_json_is_named(content: str, tmp_path: Path) -> None:
    (folder(tmp_path / "images") / "dataset.json").write_text(content, encoding="utf-8")
    one_line(r"dataset\.json: ", lambda: FolderSource(tmp_path / "images"))


def test_image_with_two_labels_is_named(tmp_path: Path) -> None:
    pairs = [[f"{i:06d}.png", 0] for i in range(4)] + [["000002.png", 1]]
    (folder(tmp_path / "images") / "dataset.json").write_text(json.dumps({"labels": pairs}))
    one_line(r"000002\.png has the labels 0 and 1", lambda: FolderSource(tmp_path / "images"))


# moments


def normal(n: int, d: int) -> np.ndarray:
    return torch.randn(n, d, generator=keyed_generator("field moments", index=0)).numpy()


COVARIANCE = np.cov(normal(2000, 8), rowvar=False)
MOMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a triangle": ({"sigma": np.triu(COVARIANCE)}, "sigma is not symmetric, by up to 0.0"),
    "a correlation above one": ({"sigma": COVARIANCE + 2 * (1 - np.eye(8))}, "sigma has a negative eigenvalue"),
    "a negative variance": ({"sigma": COVARIANCE - 9 * np.eye(8)}, "sigma has a negative variance"),
    "not finite": ({"sigma": COVARIANCE * np.nan}, "not finite"),
    "complex": ({"sigma": COVARIANCE + 0j}, "not real numbers"),
    "another size": ({"mu": np.zeros(9)}, r"mu \(9,\) and sigma \(8, 8\)"),
    "a row": ({"mu": np.zeros((1, 8))}, r"mu \(1, 8\) and sigma"),
    "no n": ({"n": np.array(0)}, "holds n = 0, not a number of images"),
    "half an n": ({"n": np.array(10.5)}, "holds n = 10.5"),
    "many n": ({"n": np.array([1, 2])}, "not a number of images"),
}


@pytest.mark.parametrize("change, message", MOMENTS.values(), ids=MOMENTS)
def test_moments_that_are_none_are_named_with_their_file(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **({"mu": np.zeros(8), "sigma": COVARIANCE} | change))
    one_line(rf"r\.npz.*{message}", lambda: Moments.load(tmp_path / "r.npz", 8))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"PK\3\4" + bytes(40)])
def test_file_that_is_no_npz_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.npz").write_bytes(content)
    one_line(r"r\.npz is no npz of plain arrays", lambda: Moments.load(tmp_path / "r.npz", 8))


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 8), (5, 8), (4000, 64), (20, 64)])
@pytest.mark.parametrize("shift", [0, 30])
def test_moments_within_the_rounding_of_float32_are_accepted(n: int, d: int, shift: int, tmp_path: Path) -> None:
    """Rank-deficient ones too, whose lowest eigenvalues are rounding errors of either sign."""
    x = normal(n, d) + np.float32(shift)
    mean = x.mean(0)
    sigma = ((x.T @ x - n * np.outer(mean, mean)) / np.float32(n - 1)).astype(np.float32)
    np.savez(tmp_path / "r.npz", mu=mean, sigma=sigma, n=n)
    assert Moments.load(tmp_path / "r.npz", d).n == n
    np.savez(tmp_path / "big-endian.npz", mu=mean.astype(">f4"), sigma=sigma.astype(">f4"))
    assert torch.equal(Moments.load(tmp_path / "big-endian.npz", d).mean, torch.tensor(mean).double())


# GenEval's folders, and prompts

PROMPTS = example_prompts(1)


def geneval(directory: Path) -> tuple[Path, RecordedDetections]:
    write_layout(directory, PROMPTS, lambda index, ordinal: np.full((8, 8, 3), index, np.uint8), 1)
    found = {f"{i:05d}/samples/00000.png": correct_detections(m) for i, m in enumerate(PROMPTS)}
    return directory, RecordedDetections("oracle", found)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"hello", "does not begin as a PNG"), (png()[:60], "truncated"), (None, "links to nowhere")],
)
def test_damaged_image_beside_recorded_detections_has_no_score(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    directory, recorded = geneval(tmp_path / "images")
    assert score_folder(GenEval(recorded), directory, PROMPTS, 1).scores.overall == 1
    path = directory / "00003" / "samples" / "00000.png"
    path.unlink()
    if content is None:
        path.symlink_to("/nowhere")
    else:
        path.write_bytes(content)
    one_line(rf"00003/samples/00000\.png: .*{message}", lambda: score_folder(GenEval(recorded), directory, PROMPTS, 1))


def test_geneval_reads_what_the_other_readers_do(tmp_path: Path) -> None:
    directory, _ = geneval(tmp_path / "images")
    samples = directory / "00001" / "samples"
    (samples / "._00000.png").write_bytes(b"\0\5\26\7")
    (directory / ".DS_Store").write_bytes(b"")
    (samples / "00000.png").rename(samples / "00000.PNG")
    (directory / "00002").rename(tmp_path / "moved")
    (directory / "00002").symlink_to(tmp_path / "moved", target_is_directory=True)
    assert [sample.index for sample in read_layout(directory, PROMPTS, 1)] == [0, 1, 2, 3, 4, 5]
    (samples / "00000.PNG").rename(samples / "00000.jpg")
    one_line(r"00001/samples/00000\.jpg: not a PNG", lambda: read_layout(directory, PROMPTS, 1))


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff", "\u2060\u200d", "\u00a0", "\u3164", "\u2800"])
def test_prompt_without_anything_to_see_is_none(blank: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(f"\ufeffa cat\n{blank}\na dog{blank}\n\u200ba dog\n", encoding="utf-8")
    assert TextFile(str(tmp_path / "p.txt")).read() == ["a cat", "a dog"]
    (tmp_path / "none.txt").write_text(f"{blank}\n{blank}", encoding="utf-8")
    one_line("holds no prompt|is empty", lambda: TextFile(str(tmp_path / "none.txt")).read())
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": blank}))
    one_line("prompt must be a text with something to see", lambda: JsonLines(str(tmp_path / "p.jsonl")).read())
    (tmp_path / "m.jsonl").write_text(json.dumps(json.loads(PROMPTS[0].line()) | {"prompt": blank}))
    one_line("prompt must be a text with something to see", lambda: read_prompts(tmp_path / "m.jsonl"))
