"""Ratios are those of medians of interleaved times; the command writes a row that its own seconds explain."""

import json
from itertools import accumulate, cycle
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from tiny_runs import Said, finished, light, refused
from torch import Tensor

import fgm.cli.bench
from fgm.analysis.memory_rows import table_of
from fgm.cli.benchmarks.evaluation import Bench
from fgm.cli.benchmarks.extractors import extractor_of
from fgm.cli.benchmarks.timing import interleaved, ratios
from fgm.data.images import Digits
from fgm.evaluation.conditioning import balanced
from fgm.evaluation.sampling import Sampler
from fgm.evaluation.sources.sampler import SamplerSource

TINY = ["subject=evaluation", "n=40", "repetitions=3", "network.width=16", "network.depth=1", "evaluation.batch=20"]


def test_arms_take_turns_and_only_their_own_time_counts() -> None:
    ticks, said = accumulate(cycle([1.0, 2.0])), []
    times = interleaved({name: lambda name=name: said.append(name) for name in "abc"}, 3, lambda: next(ticks))
    assert "".join(said) == "abc" + "abc" + "cba" + "abc"
    assert times == {name: [2.0, 2.0, 2.0] for name in "abc"}


def test_a_ratio_is_that_of_medians_within_single_repetitions() -> None:
    arms, wanted = {"a": [3.0, 4.0, 100.0], "b": [1.0, 2.0, 4.0]}, {"a_over_b": ("a", "b"), "a_over_c": ("a", "c")}
    (row,) = ratios(arms, wanted, n=1, protocol="p")
    assert (row.metric, row.value, row.extra) == ("a_over_b", 2.0, {"low": 2.0, "high": 25.0})


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("bench")
    fgm.cli.bench.main([*TINY, f"outputs={home}", f"experiments={home}"])
    (line,) = (home / "bench" / "runs.jsonl").read_text().splitlines()
    return json.loads(line)


def test_a_row_says_what_ran_and_its_ratios_follow_from_its_seconds(row: dict[str, Any]) -> None:
    assert {"commit", "config_digest", "study_digest", "seed", "wall_s", "date"} <= row.keys()
    assert (row["recipe"], row["subject"], row["extractor"]) == ("digits_fgm", "evaluation", "small")
    seconds, values = row["seconds"], {r["metric"]: r for r in row["results"]}
    assert all(len(each) == 3 for each in seconds.values()) and row["images_seen"] == 5 * 4 * 40
    over = {"evaluation_over_bare": ("evaluation", "bare"), "evaluation_over_fidelity": ("pictures", "fidelity")}
    for metric, (arm, of) in over.items():
        told = values[metric]
        assert told["value"] == pytest.approx(median(seconds[arm]) / median(seconds[of]), rel=0.1)
        assert told["low"] <= told["high"] and told["n"] == 40
        assert told["protocol"].startswith("untrained network; small-classifier, fd and kid of 100 subsets")
    assert values["images_per_s"]["value"] == pytest.approx(40 / median(seconds["evaluation"]), rel=0.1)


def test_both_sides_measure_the_same_distances(tmp_path: Path) -> None:
    """What is compared is the same work: ours and torch-fidelity's values agree."""

    class Noise(torch.nn.Module):
        def forward(self, z: Tensor, condition: Tensor) -> Tensor:
            return z / 2

    noise, cpu = Sampler("noise", Noise(), 1, "raw"), torch.device("cpu")
    source = SamplerSource(noise, 0, 60, (1, 8, 8), balanced(10), cpu, 20)
    arms = Bench(source, Digits(), extractor_of("small"), ("fd", "kid"), tmp_path).arms()
    theirs: Any = arms["fidelity"]()
    for arm in ("evaluation", "pictures"):
        ours: Any = {m.metric: m.value for m in arms[arm]()}  # type: ignore[attr-defined]
        assert ours["fd"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
        assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


def test_a_table_holds_the_newest_row_of_each_measurement(row: dict[str, Any]) -> None:
    old = row | {"results": [result | {"value": 99.0} for result in row["results"]]}
    lines = table_of([old, row, row | {"recipe": "another"}])
    (head, rule, one, other, end) = lines
    assert "evaluation_over_bare" in head and "| 99 |" not in one and other.startswith("| another |") and not end
    assert head.count("|") == rule.count("|") == one.count("|") == other.count("|")
    assert len(table_of([row, row | {"subject": "cycle"}])) == 8, "a table for each subject"


def test_a_finished_run_is_timed_with_its_own_weights(tmp_path: Path) -> None:
    recipe = [a for a in TINY if "." in a] + ["method.generator_start=random"]
    run = finished(tmp_path / "outputs", "digits_fgm", recipe)
    fgm.cli.bench.main([*run, "subject=evaluation", "n=40", "repetitions=1", f"experiments={tmp_path}"])
    told = json.loads((tmp_path / "bench" / "runs.jsonl").read_text())["results"][0]
    assert told["protocol"].startswith("finished run;") and told["weights"] == "ema"


BAD = {
    "unknown subject": (["subject=evaluations"], "subject = evaluations: unknown; did you mean evaluation"),
    "unknown extractor": (["extractor=incepton"], "extractor = incepton: unknown; did you mean inception"),
    "few samples": (
        ["subject=evaluation", "n=32", "network.width=16", "network.depth=1"],
        "fd in 32 features needs 33 samples; give metrics=kid",
    ),
    "no samples": (["n=0"], "n = 0 must be a whole number from 2"),
    "no repetition": (["repetitions=0"], "repetitions = 0 must be a whole number from 1"),
    "points": (
        ["subject=evaluation", "experiment=mixture_fgm"],
        "subject = evaluation measures pictures, and mixture_fgm draws points",
    ),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_what_cannot_be_timed_is_one_line(
    arguments: list[str], message: str, capsys: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert message in refused(fgm.cli.bench.main, [*arguments, f"experiments={tmp_path}"], capsys, monkeypatch)
    assert not list(tmp_path.iterdir())


def test_a_bad_choice_is_refused_before_torch_is_imported() -> None:
    assert "subject = cycles: unknown; did you mean cycle" in light("bench", ["subject=cycles"])
    assert "times a plain distillation in one step: digits_teacher has" in light("bench", ["experiment=digits_teacher"])
