"""ShapeEval: ground truth scores 1, shuffled captions close to 0, and prompts are balanced."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from fgm.cli.config import compose_experiment
from fgm.data.geneval import COLORS, TAGS
from fgm.data.shapes.captions import SHAPES, binds_unseen, decode
from fgm.data.shapes.dataset import Shapes
from fgm.data.shapes.scenes import draw_scenes, draw_scenes_of, render, shapes_of
from fgm.evaluation import PromptMetric, measure
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.feature_metrics import DigitMetrics
from fgm.evaluation.geneval.rules import Detection, GenEvalRules, grade
from fgm.evaluation.plots import captioned_rows, save_rows
from fgm.evaluation.sampling import Sampler
from fgm.evaluation.shapes.metric import RULES, ShapeEvalSuite, expected_histograms, histogram_distances, histograms
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

PER_TAG = 40
N = 6 * PER_TAG


@pytest.fixture(scope="module")
def suite() -> ShapeEvalSuite:
    return ShapeEvalSuite(prompts_per_tag=PER_TAG, images_per_tag=PER_TAG)


class Painter(nn.Module):
    """Renders a scene of every caption, or an empty canvas for the captions in `blank`."""

    def __init__(self, suite: ShapeEvalSuite, blank: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.suite, self.blank = suite, blank
        self.row = {prompt: i for i, prompt in enumerate(suite.captions.prompts())}

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        prompts = decode(condition)
        captions = self.suite.captions[torch.tensor([self.row[prompt] for prompt in prompts])]
        scenes = draw_scenes_of(captions, keyed_generator("painter", index=0), self.suite.canvas)
        images = render(scenes, self.suite.size)
        images[torch.tensor([prompt in self.blank for prompt in prompts])] = 0
        return images + 0 * z


def measured(suite: ShapeEvalSuite, sampler: nn.Module, n: int = N, batch: int = 1000) -> dict[str, float]:
    evaluation, painter = Evaluator(suite, every=0, batch=batch), Sampler("painter", sampler, 1, "ema")
    samples = evaluation.source(painter, Shapes(), torch.device("cpu"), n).take(range(n))
    return {m.metric: m.value for m in measure(suite, samples.x, samples.labels)}


# scores


def test_ground_truth_is_the_ceiling_and_shuffled_captions_the_floor(suite: ShapeEvalSuite) -> None:
    values = {(m.protocol.partition(":")[0], m.metric): m for m in suite.reference_values()}
    assert values["ceiling", "shapeeval"].value >= 0.99
    assert all(values["ceiling", f"shapeeval_{tag}"].value >= 0.97 for tag in (*TAGS, "seen", "unseen"))
    assert values["floor", "shapeeval"].value < 0.15 > values["floor", "shapeeval_color_attr"].value
    assert values["ceiling", "shapeeval"].n == N and values["ceiling", "shapeeval_colors"].n == PER_TAG
    assert "counting_threshold=0.7" in values["floor", "shapeeval"].protocol


def test_sampler_that_paints_its_captions_scores_one_in_any_batches(suite: ShapeEvalSuite) -> None:
    values = measured(suite, Painter(suite), n=66, batch=25)
    scores = [value for metric, value in values.items() if metric.startswith("shapeeval")]
    assert len(scores) == 9 and all(value == 1 for value in scores)
    assert values["class_tv"] == values["count_tv"] == values["stray"] == 0 and values["parse_rate"] == 1


def test_scores_of_seen_and_held_out_pairs_are_separated(suite: ShapeEvalSuite) -> None:
    held_out = frozenset(metadata.prompt for metadata in suite.sequence if binds_unseen(metadata))
    values = measured(suite, Painter(suite, held_out))
    share = {tag: sum(suite.unseen[i] for i in range(N) if suite.sequence[i].tag == tag) / PER_TAG for tag in TAGS}
    assert (values["shapeeval_seen"], values["shapeeval_unseen"]) == (1, 0)
    assert share["colors"] == 0.2 and share["color_attr"] > 0
    for tag in TAGS:
        assert values[f"shapeeval_{tag}"] == pytest.approx(1 - share[tag])
    assert values["shapeeval"] == pytest.approx(1 - sum(share.values()) / 6)


def test_empty_canvas_scores_zero(suite: ShapeEvalSuite) -> None:
    values = measured(suite, Painter(suite, frozenset(suite.prompts(torch.arange(N)))), n=12)
    assert values["shapeeval"] == values["parse_rate"] == 0
    assert values["class_tv"] == values["colour_tv"] == values["count_tv"] == 1
    assert "crispness" not in values


def test_blur_changes_counts_less_with_shapeevals_threshold(suite: ShapeEvalSuite) -> None:
    counting = torch.arange(2, N, 6)
    readings = suite.detector.read(gaussian_blur(suite.ground_truth(counting), 9, 1.5))
    correct = {
        threshold: sum(
            grade(suite.sequence[i], r.detections, GenEvalRules(counting_threshold=threshold)).correct
            for i, r in zip(counting.tolist(), readings, strict=True)
        )
        for threshold in (RULES.counting_threshold, 0.9)
    }
    assert correct[0.7] > 0.8 * PER_TAG > 0.5 * PER_TAG > correct[0.9]


def test_grades_have_reasons(suite: ShapeEvalSuite) -> None:
    images = suite.ground_truth(torch.arange(6))
    images[3] = 0
    grades = suite.grades(images, torch.arange(6))
    assert [correct for correct, _ in grades] == [True, True, True, False, True, True]
    assert grades[3][1].endswith("found 0") and grades[0][1] == ""


def test_interval_contains_the_score(suite: ShapeEvalSuite) -> None:
    score = measure(suite, suite.ground_truth(torch.arange(N)), torch.arange(N).flip(0))[0]
    low, high = score.extra["ci95"]
    assert score.metric == "shapeeval" and low < score.value < high


# prompts


@pytest.mark.parametrize("images", [100, 400])
def test_every_tag_has_its_images_in_equal_shares(images: int) -> None:
    suite = ShapeEvalSuite(prompts_per_tag=50, images_per_tag=images)
    for tag in TAGS:
        shares = Counter(metadata.prompt for metadata in suite.sequence if metadata.tag == tag)
        assert sum(shares.values()) == images and max(shares.values()) - min(shares.values()) <= 1
        assert len(shares) <= 50


def test_default_prompts_are_all_captions_up_to_a_hundred_of_a_tag() -> None:
    distinct = set(ShapeEvalSuite().sequence)
    assert len(distinct) == len({metadata.prompt for metadata in distinct}) == 4 + 12 + 12 + 40 + 48 + 100
    unseen = Counter(metadata.tag for metadata in distinct if binds_unseen(metadata))
    assert unseen.keys() == {"colors", "color_attr"} and unseen["colors"] == 8 and unseen["color_attr"] > 20


def test_prompts_are_a_function_of_the_seed() -> None:
    one, same, other = (ShapeEvalSuite(prompts_per_tag=5, images_per_tag=5, seed=seed).sequence for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("n", [1, 6, 25, N])
def test_first_n_prompts_are_balanced_over_tags_and_captions(suite: ShapeEvalSuite, n: int) -> None:
    first = suite.sequence[:n]
    tags = Counter(m.tag for m in first)
    assert max(tags.values()) - (min(tags.values()) if len(tags) == 6 else 0) <= 1
    for tag in tags:
        prompts = Counter(m.prompt for m in first if m.tag == tag)
        assert max(prompts.values()) <= -(-tags[tag] // len({m.prompt for m in suite.sequence if m.tag == tag}))


def test_prompts_repeat_after_the_last_and_match_their_conditions(suite: ShapeEvalSuite) -> None:
    once, again = suite.prompt_ids(torch.arange(N)), suite.prompt_ids(torch.arange(N, 2 * N))
    assert torch.equal(once, again)
    assert decode(suite.conditions(once)) == suite.prompts(once) == [m.prompt for m in suite.sequence]
    assert isinstance(suite, PromptMetric) and not isinstance(DigitMetrics.__new__(DigitMetrics), PromptMetric)


def test_bad_prompt_numbers_and_fewer_images_than_prompts_are_errors(suite: ShapeEvalSuite) -> None:
    images = suite.ground_truth(torch.arange(4))
    for wrong in (None, torch.tensor([0, 1, 2, N])):
        with pytest.raises(UserError, match="shapeeval needs samples of its own prompts"):
            measure(suite, images, wrong)
    with pytest.raises(UserError, match="images_per_tag = 10 is less than prompts_per_tag = 20"):
        ShapeEvalSuite(prompts_per_tag=20, images_per_tag=10)


# histograms


def test_expected_histograms_are_the_means_over_scenes(suite: ShapeEvalSuite) -> None:
    counts = torch.zeros(len(COLORS))
    for i in range(4):
        scenes = draw_scenes_of(suite.captions, keyed_generator("prior", index=i), suite.canvas)
        counts += scenes.color[scenes.shape >= 0].bincount(minlength=len(COLORS)) / 4
    expected = expected_histograms(suite.captions)
    assert expected["class_tv"].sum() == (scenes.shape >= 0).sum() == expected["colour_tv"].sum().round()
    torch.testing.assert_close(counts.double(), expected["colour_tv"], rtol=0.2, atol=4)


def test_class_distance_of_a_missing_class_is_its_share() -> None:
    captions = draw_scenes(300, keyed_generator("histograms", index=0)).captions
    shapes = shapes_of(captions)
    found = [[Detection(SHAPES[s], (0, 0, 1, 1), 1.0, None, "red") for s in row if s > 0] for row in shapes.tolist()]
    share = (shapes == 0).sum().item() / (shapes >= 0).sum().item()
    assert histogram_distances(histograms(found), captions)["class_tv"] == pytest.approx(share)


# pictures and configs


def test_picture_has_every_caption_below_every_row(suite: ShapeEvalSuite, tmp_path: Path) -> None:
    shown = torch.arange(4)
    rows, captions = {"one step": suite.ground_truth(shown), "real": suite.ground_truth(shown)}, suite.prompts(shown)
    figure = captioned_rows(rows, captions, 3)
    texts = [text.get_text().replace("\n", " ") for axis in figure.axes for text in axis.texts]
    assert texts == captions and sum(len(axis.images) for axis in figure.axes) == 4
    save_rows(rows, tmp_path / "grid.png", captions)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("overrides", [["data=shapes", "evaluation=shape_eval"], ["evaluation=random_features"]])
def test_evaluations_are_instantiated_from_a_recipe(overrides: list[str]) -> None:
    evaluation = instantiate(compose_experiment("digits_fgm", overrides)["evaluation"])
    assert isinstance(evaluation, Evaluator) and evaluation.monitor is None
