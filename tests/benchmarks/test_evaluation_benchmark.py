"""Ratios are those of medians of interleaved times, and both libraries measure the same distances."""

import json
from itertools import accumulate, cycle
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from tiny_runs import finished
from torch import Tensor

from benchmarks import evaluation
from benchmarks.evaluation import EvaluationBench, extractor_of
from benchmarks.timing import interleaved, ratios
from fgm.data.images import Digits
from fgm.evaluation.sampling import Sampler, balanced
from fgm.evaluation.sources import SamplerSource
from fgm.utils.errors import UserError

TINY = ["n=40", "repetitions=3", "network.width=16", "network.depth=1", "evaluation.batch=20"]


def test_arms_alternate_and_only_their_own_time_counts() -> None:
    ticks, ran = accumulate(cycle([1.0, 2.0])), []
    times = interleaved({name: lambda name=name: ran.append(name) for name in "abc"}, 3, lambda: next(ticks))
    assert "".join(ran) == "abc" + "abc" + "cba" + "abc"
    assert times == {name: [2.0, 2.0, 2.0] for name in "abc"}


def test_ratio_is_of_medians_with_its_range_over_repetitions() -> None:
    arms, wanted = {"a": [3.0, 4.0, 100.0], "b": [1.0, 2.0, 4.0]}, {"a_over_b": ("a", "b"), "a_over_c": ("a", "c")}
    (row,) = ratios(arms, wanted, n=1, protocol="p")
    assert (row.metric, row.value, row.extra) == ("a_over_b", 2.0, {"low": 2.0, "high": 25.0})


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("bench")
    evaluation.main([*TINY, f"outputs={home}", f"experiments={home}"])
    (line,) = (home / "bench" / "runs.jsonl").read_text().splitlines()
    return json.loads(line)


def test_recorded_ratios_follow_from_the_recorded_seconds(row: dict[str, Any]) -> None:
    assert {"commit", "config_digest", "study_digest", "seed", "wall_s", "date"} <= row.keys()
    assert (row["experiment"], row["subject"], row["extractor"]) == ("digits_fgm", "evaluation", "small")
    seconds, values = row["seconds"], {r["metric"]: r for r in row["results"]}
    assert all(len(each) == 3 for each in seconds.values()) and row["images_seen"] == 5 * 4 * 40
    over = {"evaluation_over_bare": ("evaluation", "bare"), "evaluation_over_fidelity": ("pictures", "fidelity")}
    for metric, (arm, of) in over.items():
        result = values[metric]
        assert result["value"] == pytest.approx(median(seconds[arm]) / median(seconds[of]), rel=0.1)
        assert result["low"] <= result["high"] and result["n"] == 40
        assert result["protocol"].startswith("untrained network; small-classifier, fd and kid of 100 subsets")
    assert values["images_per_s"]["value"] == pytest.approx(40 / median(seconds["evaluation"]), rel=0.1)


def test_our_distances_equal_torch_fidelitys(tmp_path: Path) -> None:

    class Noise(torch.nn.Module):
        def forward(self, z: Tensor, condition: Tensor) -> Tensor:
            return z / 2

    noise, cpu = Sampler("noise", Noise(), 1, "raw"), torch.device("cpu")
    source = SamplerSource(noise, 0, 60, (1, 8, 8), balanced(10), cpu, 20)
    arms = EvaluationBench(source, Digits(), extractor_of("small"), ("fd", "kid"), tmp_path).arms()
    theirs: Any = arms["fidelity"]()
    for arm in ("evaluation", "pictures"):
        ours: Any = {m.metric: m.value for m in arms[arm]()}  # type: ignore[attr-defined]
        assert ours["fd"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
        assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


def test_finished_run_is_timed_with_its_own_weights(tmp_path: Path) -> None:
    experiment = [a for a in TINY if "." in a] + ["method.generator_init=random"]
    run = finished(tmp_path / "outputs", "digits_fgm", experiment)
    evaluation.main([*run, "n=40", "repetitions=1", f"experiments={tmp_path}"])
    result = json.loads((tmp_path / "bench" / "runs.jsonl").read_text())["results"][0]
    assert result["protocol"].startswith("finished run;") and result["weights"] == "ema"


@pytest.mark.parametrize(
    "arguments",
    [["extractor=incepton"], ["n=0"], ["n=32", "network.width=16", "network.depth=1"], ["experiment=mixture_fgm"]],
)
def test_what_cannot_be_timed_is_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        evaluation.main([*arguments, f"experiments={tmp_path}"])
    assert not list(tmp_path.iterdir())
