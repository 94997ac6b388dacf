"""GenEval's numbers: the published formula, an interval that covers, and a torchmetrics.Metric with exact states."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from geneval_files import correct_detections, example_prompts, write_layout
from ranks import on_ranks

from fgm.data.geneval import PROMPTS_PER_TAG, Metadata
from fgm.evaluation.distances import bootstrap
from fgm.evaluation.geneval.folder import score_folder
from fgm.evaluation.geneval.metric import GenEval
from fgm.evaluation.geneval.rules import Detection, GenEvalRules, Pixels
from fgm.evaluation.prompt_score import Scores, summarize
from fgm.utils.errors import UserError

TAGS = {"single_object": 3, "counting": 5, "color_attr": 2}
TAG_OF = [tag for tag, count in TAGS.items() for _ in range(count)]


def scores(correct: Callable[[int, int], Any], tags: Sequence[str] = TAG_OF, per_prompt: int = 4) -> Scores:
    images = [(i, k) for i in range(len(tags)) for k in range(per_prompt)]
    return summarize([tags[i] for i, _ in images], [i for i, _ in images], [bool(correct(i, k)) for i, k in images])


# the summary


def test_scores_are_the_official_formula() -> None:
    rng = random.Random(0)
    drawn = {(i, k): rng.random() < 0.4 for i in range(10) for k in range(4)}
    found = scores(lambda i, k: drawn[i, k])
    by_tag = {tag: [float(right) for (i, _), right in drawn.items() if TAG_OF[i] == tag] for tag in TAGS}
    assert found.tags == pytest.approx({tag: mean(images) for tag, images in by_tag.items()})
    assert found.overall == pytest.approx(mean(found.tags.values()))
    assert found.images == pytest.approx(sum(drawn.values()) / 40) and found.n == 40
    assert found.prompts == pytest.approx(mean(float(any(drawn[i, k] for k in range(4))) for i in range(10)))


def test_overall_weighs_tags_equally_and_not_images() -> None:
    found = scores(lambda i, k: TAG_OF[i] == "color_attr")
    assert found.overall == pytest.approx(1 / 3) and found.images == pytest.approx(2 / 10)


def test_certain_outcome_has_an_interval_of_no_width() -> None:
    for value in (True, False):
        found = scores(lambda i, k, value=value: value)
        assert (found.overall, *found.interval, found.images, found.prompts) == (value,) * 5


def test_interval_resamples_prompts_and_is_seeded() -> None:
    """Images of one prompt agree here, so four times as many images do not halve the interval."""
    found = scores(lambda i, k: i % 2, ["colors"] * 60)
    low, high = found.interval
    assert low < found.overall < high and high - low == pytest.approx(2 * 1.96 * 0.5 / 60**0.5, rel=0.15)
    assert found.interval == bootstrap([np.arange(60) % 2]) != bootstrap([np.arange(60) % 2], seed=1)


def test_interval_covers_the_expectation_in_95_percent() -> None:
    """Prompts of different difficulty, four samples each."""
    generator, sizes, trials = np.random.default_rng(0), (30, 40, 50), 400
    expectation = mean((2 / 3, 1 / 2, 1 / 4))
    covered = 0
    for trial in range(trials):
        difficulty = [generator.beta(a, b, n) for (a, b), n in zip(((2, 1), (1, 1), (1, 3)), sizes, strict=True)]
        low, high = bootstrap([generator.binomial(4, p) / 4 for p in difficulty], 300, trial)
        covered += low <= expectation <= high
    assert 0.91 <= covered / trials <= 0.98


def test_interval_ends_agree_with_the_central_limit_theorem() -> None:
    shares = np.random.default_rng(0).random(300)
    low, high = bootstrap([shares], 10_000)
    error = 1.96 * shares.std() / 300**0.5
    assert [low, high] == pytest.approx([shares.mean() - error, shares.mean() + error], abs=0.05 * error)


def test_interval_of_an_official_run_is_about_four_points_wide() -> None:
    rng = np.random.default_rng(0)
    low, high = bootstrap([rng.binomial(1, 0.6, (n, 4)).mean(1) for n in PROMPTS_PER_TAG.values()], 500)
    assert 0.03 < high - low < 0.05


def test_measurement_has_tags_interval_and_protocol() -> None:
    row = scores(lambda i, k: k < 2).measurement("GenEval rules; oracle", nfe=1, weights="ema").row()
    assert (row["metric"], row["value"], row["n"], row["nfe"], row["weights"]) == ("geneval", 0.5, 40, 1, "ema")
    assert (
        row["counting"] == 0.5
        and row["ci95"][0] <= 0.5 <= row["ci95"][1]
        and row["protocol"] == "GenEval rules; oracle"
    )


# the metric

PROMPTS = example_prompts(7)


class FirstPixel:
    """Detects the objects of the prompt whose number is the first pixel's red, without colors."""

    protocol = "first pixel"

    def detect(self, image: Pixels) -> list[Detection]:
        found = correct_detections(PROMPTS[image[0, 0, 0]])
        return [Detection(d.cls, d.box, d.score) for d in found]


class Red:
    """A color classifier that answers red and records the detections that it was shown."""

    protocol = "always red"

    def __init__(self) -> None:
        self.shown: list[Detection] = []

    def classify(self, image: Pixels, detections: Sequence[Detection]) -> list[str]:
        self.shown += detections
        return ["red"] * len(detections)


def shifted(index: int, ordinal: int) -> Pixels:
    """An image of the prompt itself, or of another one."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0, 0] = index if ordinal or index % 3 else (index + 7) % len(PROMPTS)
    return image


def test_metric_equals_the_score_of_the_folder(tmp_path: Path) -> None:
    write_layout(tmp_path, PROMPTS, shifted, per_prompt=2)
    folder = score_folder(GenEval(FirstPixel(), Red()), tmp_path, PROMPTS, 2).scores
    expected = {"overall": folder.overall, "images": folder.images, "prompts": folder.prompts} | folder.tags
    images = torch.stack([torch.from_numpy(shifted(i, k)) for i in range(len(PROMPTS)) for k in (0, 1)]).movedim(-1, 1)
    prompts = [metadata for metadata in PROMPTS for _ in (0, 1)]
    for pixels in (images, images.float() / 127.5 - 1):
        metric = GenEval(FirstPixel(), Red())
        metric.update(pixels, prompts)
        assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(expected, abs=1e-7)
    assert 0.1 < folder.overall < 0.9 and len(expected) == 9


def half_correct(prompts: Sequence[Metadata]) -> list[list[Detection]]:
    return [correct_detections(metadata) if i % 2 else [] for i, metadata in enumerate(prompts)]


def values(metric: GenEval) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def test_updates_in_batches_equal_one_update_in_any_order() -> None:
    prompts, detections = PROMPTS * 3, half_correct(PROMPTS * 3)
    once, batches = GenEval(), GenEval()
    once.update(detections, prompts)
    for start in reversed(range(0, len(prompts), 5)):
        batches.update(detections[start : start + 5], prompts[start : start + 5])
    assert values(batches) == values(once) and 0 < values(once)["overall"] < 1
    batches.reset()
    batches.update(detections[1:2], prompts[1:2])
    assert values(batches) == dict.fromkeys(("overall", "images", "prompts", "single_object"), 1.0)


def compute_on_rank() -> None:
    torch.distributed.init_process_group("gloo")
    prompts, detections = PROMPTS * 2, half_correct(PROMPTS * 2)
    own = slice(0, 60) if torch.distributed.get_rank() == 0 else slice(60, None)
    metric, reference = GenEval(), GenEval(sync_on_compute=False)
    metric.update(detections[own], prompts[own])
    reference.update(detections, prompts)
    assert values(metric) == values(reference)


def test_uneven_ranks_compute_the_value_of_one_process() -> None:
    on_ranks(compute_on_rank)


def test_only_visible_boxes_without_a_color_reach_the_classifier() -> None:
    prompt = next(metadata for metadata in PROMPTS if metadata.tag == "colors")
    cls = prompt.include[0].cls
    best, second, other = (Detection(name, (0, 0, 5, 5), score) for name, score in ((cls, 0.9), (cls, 0.8), ("tie", 1)))
    colors = Red()
    selected, result = GenEval(colors=colors).grade(
        [second, other, best], prompt, lambda: np.zeros((8, 8, 3), np.uint8)
    )
    assert colors.shown == [best] and selected[cls][0].color == "red" and selected[cls][1].color is None
    assert result.correct is (prompt.include[0].color == "red")
    known = GenEval(colors=colors)
    known.update([correct_detections(metadata) for metadata in PROMPTS], PROMPTS)
    assert colors.shown == [best] and values(known)["overall"] == 1


def test_missing_detector_and_missing_color_are_errors() -> None:
    with pytest.raises(UserError, match="GenEval has no detector"):
        GenEval().update(torch.zeros(1, 3, 8, 8), PROMPTS[:1])
    prompt = next(metadata for metadata in PROMPTS if metadata.tag == "colors")
    with pytest.raises(UserError, match="has no color"):
        GenEval().update([[Detection(prompt.include[0].cls, (0, 0, 5, 5), 0.9)]], [prompt])


def test_protocol_names_rules_networks_and_prompts() -> None:
    own = GenEval(FirstPixel(), Red(), GenEvalRules(threshold=0.4)).protocol(PROMPTS)
    assert own.startswith(f"GenEval rules, threshold=0.4; first pixel; always red; {len(PROMPTS)} prompts, ")
    official = GenEval(FirstPixel()).protocol(example_prompts(PROMPTS_PER_TAG))
    assert official.startswith("GenEval rules; first pixel; 553 prompts in GenEval's counts, ")
    assert own[-8:] != official[-8:]
