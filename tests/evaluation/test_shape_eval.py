"""ShapeEval: the truth scores 1, shuffled captions next to nothing, and every number is about what it says."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from fgm.cli.config import read_recipe
from fgm.data.shapes.dataset import Shapes
from fgm.data.shapes.render import render
from fgm.data.shapes.scenes import draw_scenes, fill, objects_of
from fgm.data.text.shapes.grammar import TAGS
from fgm.data.text.shapes.metadata import binds_unseen
from fgm.data.text.shapes.vocabulary import COLOUR_NAMES, SHAPE_NAMES, decode
from fgm.evaluation import PromptMetric, measure
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.geneval.detections import Detection
from fgm.evaluation.geneval.rules import GenEvalRules, judge
from fgm.evaluation.images import DigitMetrics
from fgm.evaluation.pictures import captioned_grid, captioned_rows
from fgm.evaluation.sampling import Sampler
from fgm.evaluation.shape_eval import RULES, ShapeEvalMetric
from fgm.evaluation.shape_prior import histogram_distances, histograms, priors
from fgm.evaluation.shape_prompts import questions
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

PER_TAG = 40
N = 6 * PER_TAG


@pytest.fixture(scope="module")
def suite() -> ShapeEvalMetric:
    return ShapeEvalMetric(prompts_per_tag=PER_TAG, images_per_tag=PER_TAG)


class Painter(nn.Module):
    """Renders a scene of every caption that it is given, or nothing where the caption is to be left out."""

    def __init__(self, suite: ShapeEvalMetric, blank: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.suite, self.blank = suite, blank
        self.place = {prompt: i for i, prompt in enumerate(suite.lines.prompts())}

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        prompts = decode(condition)
        captions = self.suite.lines[torch.tensor([self.place[prompt] for prompt in prompts])]
        images = render(fill(captions, keyed_generator("painter", index=0), self.suite.canvas), self.suite.size)
        images[torch.tensor([prompt in self.blank for prompt in prompts])] = 0
        return images + 0 * z


def measured(suite: ShapeEvalMetric, sampler: nn.Module, n: int = N, batch: int = 1000) -> dict[str, float]:
    evaluation, painter = Evaluator(suite, every=0, batch=batch), Sampler("painter", sampler, 1, "ema")
    samples = evaluation.source(painter, Shapes(), torch.device("cpu"), n).take(range(n))
    return {m.metric: m.value for m in measure(suite, samples.x, samples.labels)}


# what is scored


def test_truth_is_the_ceiling_and_shuffled_captions_the_floor(suite: ShapeEvalMetric) -> None:
    bounds = {(m.protocol.partition(":")[0], m.metric): m for m in suite.reference_values()}
    assert bounds["ceiling", "shapeeval"].value >= 0.99
    assert all(bounds["ceiling", f"shapeeval_{tag}"].value >= 0.97 for tag in (*TAGS, "seen", "unseen"))
    assert bounds["floor", "shapeeval"].value < 0.15 > bounds["floor", "shapeeval_color_attr"].value
    assert bounds["ceiling", "shapeeval"].n == N and bounds["ceiling", "shapeeval_colors"].n == PER_TAG
    assert "counting_threshold=0.7" in bounds["floor", "shapeeval"].protocol


def test_a_sampler_that_paints_its_captions_scores_one_however_it_is_batched(suite: ShapeEvalMetric) -> None:
    values = measured(suite, Painter(suite), n=66, batch=25)
    parts = [value for metric, value in values.items() if metric.startswith("shapeeval")]
    assert len(parts) == 9 and all(value == 1 for value in parts)
    assert values["class_tv"] == values["count_tv"] == values["stray"] == 0 and values["parse_rate"] == 1


def test_seen_and_unseen_bindings_are_told_apart_exactly(suite: ShapeEvalMetric) -> None:
    asked = [line for pairs in questions(PER_TAG, PER_TAG).values() for line, _ in pairs]
    held_out = frozenset(line["prompt"] for line in asked if binds_unseen(line))
    values = measured(suite, Painter(suite, held_out))
    share = {tag: sum(suite.unseen[i] for i in range(N) if suite.asked[i].tag == tag) / PER_TAG for tag in TAGS}
    assert (values["shapeeval_seen"], values["shapeeval_unseen"]) == (1, 0)
    assert share["colors"] == 0.2 and share["color_attr"] > 0
    for tag in TAGS:
        assert values[f"shapeeval_{tag}"] == pytest.approx(1 - share[tag])
    assert values["shapeeval"] == pytest.approx(1 - sum(share.values()) / 6)


def test_an_empty_canvas_scores_nothing(suite: ShapeEvalMetric) -> None:
    values = measured(suite, Painter(suite, frozenset(suite.prompts(torch.arange(N)))), n=12)
    assert values["shapeeval"] == values["parse_rate"] == 0
    assert values["class_tv"] == values["colour_tv"] == values["count_tv"] == 1
    assert "crispness" not in values


def test_blur_is_not_taken_for_a_wrong_number(suite: ShapeEvalMetric) -> None:
    counting = torch.arange(2, N, 6)
    readings = suite.detector.read(gaussian_blur(suite.ground_truth(counting), 9, 1.5))
    correct = {
        least: sum(
            judge(suite.asked[i], r.detections, GenEvalRules(counting_threshold=least)).correct
            for i, r in zip(counting.tolist(), readings, strict=True)
        )
        for least in (RULES.counting_threshold, 0.9)
    }
    assert correct[0.7] > 0.8 * PER_TAG > 0.5 * PER_TAG > correct[0.9]


def test_a_verdict_says_why(suite: ShapeEvalMetric) -> None:
    images = suite.ground_truth(torch.arange(6))
    images[3] = 0
    verdicts = suite.grades(images, torch.arange(6))
    assert [correct for correct, _ in verdicts] == [True, True, True, False, True, True]
    assert verdicts[3][1].endswith("found 0") and verdicts[0][1] == ""


# what is asked


@pytest.mark.parametrize("n", [1, 6, 25, N])
def test_the_first_n_questions_are_balanced_over_tags_and_captions(suite: ShapeEvalMetric, n: int) -> None:
    asked = suite.asked[:n]
    tags = Counter(m.tag for m in asked)
    assert max(tags.values()) - (min(tags.values()) if len(tags) == 6 else 0) <= 1
    for tag in tags:
        prompts = Counter(m.prompt for m in asked if m.tag == tag)
        assert max(prompts.values()) <= -(-tags[tag] // len({m.prompt for m in suite.asked if m.tag == tag}))


def test_all_questions_are_asked_and_then_again(suite: ShapeEvalMetric) -> None:
    every, again = suite.prompt_ids(torch.arange(N)), suite.prompt_ids(torch.arange(N, 2 * N))
    expected = {line["prompt"]: n for pairs in questions(PER_TAG, PER_TAG).values() for line, n in pairs}
    assert Counter(suite.prompts(every)) == expected
    assert torch.equal(every, again)
    assert decode(suite.conditions(every)) == suite.prompts(every) == [m.prompt for m in suite.asked]


def test_images_that_answer_no_question_are_refused(suite: ShapeEvalMetric) -> None:
    images = suite.ground_truth(torch.arange(4))
    for wrong in (None, torch.tensor([0, 1, 2, N])):
        with pytest.raises(UserError, match="shapeeval needs samples of its own prompts"):
            measure(suite, images, wrong)


def test_the_interval_holds_the_score_and_resamples_prompts(suite: ShapeEvalMetric) -> None:
    score = measure(suite, suite.ground_truth(torch.arange(N)), torch.arange(N).flip(0))[0]
    low, high = score.extra["ci95"]
    assert score.metric == "shapeeval" and low < score.value < high


def test_only_a_suite_that_asks_supplies_conditions(suite: ShapeEvalMetric) -> None:
    assert isinstance(suite, PromptMetric) and not isinstance(DigitMetrics.__new__(DigitMetrics), PromptMetric)


# the priors


def test_the_priors_are_the_means_over_scenes(suite: ShapeEvalMetric) -> None:
    captions = suite.lines
    counts = torch.zeros(len(COLOUR_NAMES))
    for i in range(4):
        scenes = fill(captions, keyed_generator("prior", index=i), suite.canvas)
        counts += scenes.colour[scenes.shape >= 0].bincount(minlength=len(COLOUR_NAMES)) / 4
    expected = priors(captions)
    assert expected["class_tv"].sum() == (scenes.shape >= 0).sum() == expected["colour_tv"].sum().round()
    torch.testing.assert_close(counts.double(), expected["colour_tv"], rtol=0.2, atol=4)


def test_leaving_out_a_class_costs_its_share() -> None:
    captions = draw_scenes(300, keyed_generator("histograms", index=0)).captions
    shapes = objects_of(captions)
    found = [
        [Detection(SHAPE_NAMES[s], (0, 0, 1, 1), 1.0, None, "red") for s in row if s > 0] for row in shapes.tolist()
    ]
    share = (shapes == 0).sum().item() / (shapes >= 0).sum().item()
    assert histogram_distances(histograms(found), captions)["class_tv"] == pytest.approx(share)


# pictures and recipes


def test_a_picture_has_every_caption_below_every_row(suite: ShapeEvalMetric, tmp_path: Path) -> None:
    shown = torch.arange(4)
    rows, captions = {"one step": suite.ground_truth(shown), "real": suite.ground_truth(shown)}, suite.prompts(shown)
    figure = captioned_rows(rows, captions, 3)
    texts = [text.get_text().replace("\n", " ") for axis in figure.axes for text in axis.texts]
    assert texts == captions and sum(len(axis.images) for axis in figure.axes) == 4
    captioned_grid(rows, captions, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("overrides", [["data=shapes", "evaluation=shape_eval"], ["evaluation=random_features"]])
def test_the_suites_are_nouns_of_a_recipe(overrides: list[str]) -> None:
    evaluation = instantiate(read_recipe("digits_fgm", overrides)["evaluation"])
    assert isinstance(evaluation, Evaluator) and evaluation.monitor is None
