"""From pictures to a score, with detectors that know the truth."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from geneval_files import oracle, truth, write_layout

from fgm.data.text.geneval.grammar import generate_prompts
from fgm.evaluation.geneval.detections import Detection, Pixels, RecordedDetector
from fgm.evaluation.geneval.evaluate import GenEval
from fgm.evaluation.geneval.json_detector import JsonDetector
from fgm.evaluation.geneval.layout import read_layout
from fgm.evaluation.geneval.results import write_results
from fgm.evaluation.geneval.rules import GenEvalRules
from fgm.evaluation.geneval.scores import summarise

PROMPTS = generate_prompts(seed=2)[::11]


def grey(index: int, ordinal: int) -> Pixels:
    return np.full((8, 8, 3), 10 * ordinal, np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    write_layout(directory, PROMPTS, grey, per_prompt=2)
    return directory


def knowing(directory: Path, *, right: bool = True) -> RecordedDetector:
    samples = read_layout(directory, PROMPTS, per_prompt=2)
    return oracle({s.key: truth(PROMPTS[s.index]) if right or s.ordinal else [] for s in samples})


class Shade:
    """A detector that sees one dog, as dark as the picture."""

    protocol = "shade"

    def detect(self, image: Pixels) -> list[Detection]:
        return [Detection("dog", (0, 0, 8, 8), 0.5 + float(image.mean()) / 510)]


class AlwaysRed:
    """A colour classifier that counts what it is asked."""

    protocol = "always red"

    def __init__(self) -> None:
        self.asked: list[Detection] = []

    def classify(self, image: Pixels, detections: Sequence[Detection]) -> list[str]:
        self.asked += detections
        return ["red"] * len(detections)


def test_the_truth_scores_one_and_half_of_it_a_half(directory: Path) -> None:
    for right, value in ((True, 1.0), (False, 0.5)):
        results = GenEval(knowing(directory, right=right)).evaluate(read_layout(directory, PROMPTS, 2), PROMPTS)
        scores = summarise(results, PROMPTS, per_prompt=2)
        assert scores.overall == value and scores.prompts == 1 and len(scores.tags) == 6


def test_the_written_results_are_judged_again_alike(directory: Path, tmp_path: Path) -> None:
    plain = [metadata for metadata in PROMPTS if not any(clause.colour for clause in metadata.include)]
    write_layout(tmp_path / "plain", plain, grey, per_prompt=1)
    samples = read_layout(tmp_path / "plain", plain, per_prompt=1)
    seen = {s.key: truth(plain[s.index]) + truth(plain[0]) for s in samples}
    first = GenEval(oracle(seen)).evaluate(samples, plain)
    write_results(tmp_path / "results.jsonl", first)
    again = GenEval(JsonDetector(tmp_path / "results.jsonl")).evaluate(samples, plain)
    write_results(tmp_path / "again.jsonl", again)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "results.jsonl").read_bytes()


def test_a_live_detector_sees_the_pixels(directory: Path) -> None:
    results = GenEval(Shade()).evaluate(read_layout(directory, PROMPTS, 2), PROMPTS)
    counting = {r.metadata.tag == "counting": r for r in results if r.sample[1] == 1}
    assert counting[False].details == {"dog": [[0, 0, 8, 8, 0.5 + 10 / 510]]} and counting[True].details == {}


def test_only_the_boxes_that_matter_are_asked_for_their_colour(directory: Path) -> None:
    index = next(i for i, metadata in enumerate(PROMPTS) if metadata.tag == "colors")
    name = PROMPTS[index].include[0].cls
    best, second = (Detection(name, (0, 0, 5, 5), score) for score in (0.9, 0.8))
    other = Detection("person", (0, 0, 5, 5), 0.9)
    colours, sample = AlwaysRed(), read_layout(directory, PROMPTS, 2)[2 * index]
    verdict = GenEval(oracle({sample.key: [second, other, best]}), colours).verdict(sample, PROMPTS[index])
    assert colours.asked == [best]
    assert verdict.correct is (PROMPTS[index].include[0].colour == "red")


def test_a_colour_that_the_detector_told_stands(directory: Path) -> None:
    colours = AlwaysRed()
    results = GenEval(knowing(directory), colours).evaluate(read_layout(directory, PROMPTS, 2), PROMPTS)
    assert colours.asked == [] and all(result.correct for result in results)


def test_recorded_detections_do_not_open_the_pictures(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = knowing(directory)
    monkeypatch.setattr("fgm.evaluation.geneval.layout.read_png", lambda path: pytest.fail(f"opened {path}"))
    assert GenEval(detector).evaluate(read_layout(directory, PROMPTS, 2), PROMPTS)


def test_the_protocol_tells_rules_detector_colours_and_prompts(directory: Path) -> None:
    own = GenEval(Shade(), AlwaysRed(), GenEvalRules(threshold=0.4)).protocol(PROMPTS)
    assert own.startswith(f"GenEval rules, threshold=0.4; shade; always red; {len(PROMPTS)} prompts, ")
    full = GenEval(Shade()).protocol(generate_prompts(seed=2))
    assert full.startswith("GenEval rules; shade; 553 prompts in GenEval's counts, ") and own[-8:] != full[-8:]


def test_a_line_of_results_has_the_official_keys(directory: Path) -> None:
    result = GenEval(knowing(directory)).evaluate(read_layout(directory, PROMPTS, 2), PROMPTS)[0]
    row = json.loads(result.line())
    assert list(row) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert json.loads(row["metadata"])["prompt"] == row["prompt"] == PROMPTS[0].prompt
    assert json.loads(row["details"]) == {PROMPTS[0].include[0].cls: [[40, 40, 50, 50, 0.95]]}
