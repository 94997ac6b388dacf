"""The summary is the published formula; its interval covers; what is incomplete gets no number."""

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from fgm.data.text.geneval.prompts import Clause, Metadata
from fgm.data.text.geneval.vocabulary import PROMPTS_PER_TAG
from fgm.evaluation.geneval.results import Result
from fgm.evaluation.geneval.scores import summarise
from fgm.evaluation.intervals import bootstrap
from fgm.utils.errors import UserError

TAGS = {"single_object": 3, "counting": 5, "color_attr": 2}
PROMPTS = [Metadata(tag, f"{tag} {i}", (Clause("dog", i + 1),)) for tag, count in TAGS.items() for i in range(count)]


def results(
    right: Callable[[int, int], object], per_prompt: int = 4, prompts: list[Metadata] = PROMPTS
) -> list[Result]:
    return [
        Result(f"{i:05d}/samples/{k:05d}.png", (i, k), metadata, bool(right(i, k)), "" if right(i, k) else "no dog", {})
        for i, metadata in enumerate(prompts)
        for k in range(per_prompt)
    ]


def test_the_summary_is_the_formula() -> None:
    rng = random.Random(0)
    drawn = {(i, k): rng.random() < 0.4 for i in range(len(PROMPTS)) for k in range(4)}
    told = results(lambda i, k: drawn[i, k])
    scores = summarise(told, PROMPTS, 4)
    by_tag = {tag: [r.correct for r in told if r.metadata.tag == tag] for tag in TAGS}
    assert scores.tags == pytest.approx({tag: mean(map(float, correct)) for tag, correct in by_tag.items()})
    assert scores.overall == pytest.approx(mean(scores.tags.values()))
    assert scores.images == pytest.approx(sum(drawn.values()) / 40)
    assert scores.prompts == pytest.approx(mean(float(any(drawn[i, k] for k in range(4))) for i in range(10)))
    assert scores.n == 40


def test_overall_weighs_tags_and_not_pictures() -> None:
    scores = summarise(results(lambda i, k: PROMPTS[i].tag == "color_attr"), PROMPTS, 4)
    assert scores.overall == pytest.approx(1 / 3) and scores.images == pytest.approx(2 / 10)


def test_one_right_sample_makes_a_prompt_right() -> None:
    scores = summarise(results(lambda i, k: k == i % 4), PROMPTS, 4)
    assert scores.prompts == 1 and scores.images == pytest.approx(0.25) and scores.overall == pytest.approx(0.25)


@pytest.mark.parametrize(("right", "value"), [(True, 1.0), (False, 0.0)])
def test_a_sure_thing_has_no_width(right: bool, value: float) -> None:
    scores = summarise(results(lambda i, k: right), PROMPTS, 4)
    assert (scores.overall, *scores.interval, scores.images, scores.prompts) == (value,) * 5


def test_the_order_of_results_does_not_matter() -> None:
    told = results(lambda i, k: (i + k) % 3 == 0)
    assert summarise(random.Random(0).sample(told, len(told)), PROMPTS, 4) == summarise(told, PROMPTS, 4)


def test_the_interval_is_seeded_and_holds_the_score() -> None:
    prompts = [Metadata("colors", str(i), (Clause("dog"),)) for i in range(60)]
    told = results(lambda i, k: (i * k) % 7 < 3, 4, prompts)
    scores = summarise(told, prompts, 4)
    low, high = scores.interval
    assert low < scores.overall < high and summarise(told, prompts, 4) == scores
    shares = [np.array([np.mean([(i * k) % 7 < 3 for k in range(4)]) for i in range(60)])]
    assert bootstrap(shares) == scores.interval != bootstrap(shares, seed=1)


def test_the_interval_covers_the_truth() -> None:
    """Prompts of differing difficulty, four samples each: 95 % intervals hold the expectation about as often."""
    generator, sizes, trials = np.random.default_rng(0), (30, 40, 50), 400
    truth = mean((2 / 3, 1 / 2, 1 / 4))
    covered = 0
    for trial in range(trials):
        difficulty = [generator.beta(a, b, n) for (a, b), n in zip(((2, 1), (1, 1), (1, 3)), sizes, strict=True)]
        low, high = bootstrap([generator.binomial(4, p) / 4 for p in difficulty], 300, trial)
        covered += low <= truth <= high
    assert 0.91 <= covered / trials <= 0.98


def test_both_ends_are_where_the_central_limit_has_them() -> None:
    shares = np.random.default_rng(0).random(300)
    low, high = bootstrap([shares], 10_000)
    error = 1.96 * shares.std() / 300**0.5
    assert [low, high] == pytest.approx([shares.mean() - error, shares.mean() + error], abs=0.05 * error)


def test_resampling_pictures_would_be_too_sure() -> None:
    """Samples of a prompt agree, so that four times as many pictures do not halve the interval."""
    prompts = [Metadata("colors", str(i), (Clause("dog"),)) for i in range(60)]
    low, high = summarise(results(lambda i, k: i % 2, 4, prompts), prompts, 4).interval
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 60**0.5, rel=0.15)


def test_the_error_of_a_full_run_is_about_a_point() -> None:
    rng = np.random.default_rng(0)
    shares = [rng.binomial(1, 0.6, (n, 4)).mean(1) for n in PROMPTS_PER_TAG.values()]
    low, high = bootstrap(shares, 500)
    assert 0.03 < high - low < 0.05


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda told: told[4:], "1 of 10 prompts are missing: 00000; it should hold 10 prompts with 4"),
        (lambda told: told[:12], "7 of 10 prompts are missing: 00003, 00004, 00005 and 4 more"),
        (lambda told: told[:-1], "1 of 40 samples are missing: 00009/samples/00003"),
        (lambda told: told[::2], "20 of 40 samples are missing: 00000/samples/00001, "),
        (lambda told: [], "10 of 10 prompts are missing"),
        (lambda told: [*told, told[7]], "1 samples are there twice: 00001/samples/00003"),
        (
            lambda told: [*told, replace(told[0], sample=(10, 0))],
            "1 samples are too many: 00010/samples/00000",
        ),
        (
            lambda told: [*told[1:], replace(told[0], metadata=PROMPTS[1])],
            "was judged as 'single_object 1', but asked for",
        ),
    ],
)
def test_an_incomplete_set_gets_no_number(damage: Callable[[list[Result]], list[Result]], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        summarise(damage(results(lambda i, k: True)), PROMPTS, 4)


def test_a_measurement_carries_tags_and_interval() -> None:
    scores = summarise(results(lambda i, k: k < 2), PROMPTS, 4)
    row = scores.measurement("GenEval rules; oracle; ten prompts", nfe=1, weights="ema").row()
    assert (row["metric"], row["value"], row["n"], row["nfe"], row["weights"]) == ("geneval", 0.5, 40, 1, "ema")
    assert (
        row["counting"] == 0.5
        and row["ci95"][0] <= 0.5 <= row["ci95"][1]
        and row["protocol"].startswith("GenEval rules")
    )
