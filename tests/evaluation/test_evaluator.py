"""One process and two gloo ranks give the same bits; an error of one rank ends all; results name their provenance."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from ranks import free_port
from rich.console import Console

from fgm.data.images import Digits
from fgm.data.shapes.dataset import Shapes
from fgm.evaluation import PromptMetric, evaluator, measure
from fgm.evaluation.evaluator import CombinedSuite, Evaluator, definition, gather_features, key_of, record
from fgm.evaluation.feature_metrics import DigitMetrics, FeatureMetrics
from fgm.evaluation.features import RandomConvolutions
from fgm.evaluation.sampling import Sampler, balanced
from fgm.evaluation.shapes.metric import ShapeEvalSuite
from fgm.evaluation.sources import SamplerSource
from fgm.utils.distributed import ProcessGroup, Ranks, SingleProcess, on_all_ranks, on_rank_zero, ranks_of_environment
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement

N, BATCH = 50, 10
CPU = torch.device("cpu")
FEW = SimpleNamespace(split={part: Shapes().draw(60, keyed_generator(part, index=0)) for part in ("train", "test")})


class Tanh(torch.nn.Module):
    """A sampler whose last bits depend on the batch."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        weight = torch.randn(64, 64, generator=keyed_generator("tanh", index=0)) / 8
        self.weight = torch.nn.Parameter(scale * weight)

    def forward(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return (z.flatten(1) @ self.weight).unflatten(1, (1, 8, 8)).tanh() + condition.view(-1, 1, 1, 1) / 50


def source(scale: float = 1.0) -> SamplerSource:
    return SamplerSource(Sampler("tanh", Tanh(scale), 1, "ema"), 3, N, (1, 8, 8), balanced(10), CPU, BATCH)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sum in one order, as the spawned ranks do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured_by(ranks: Ranks | None = None, scale: float = 1.0) -> list[dict[str, Any]]:
    """Measure in five chunks of one batch each."""
    evaluator.CHUNK = BATCH
    return [m.row() for m in Evaluator(DigitMetrics(), n=N, every=0).measure(source(scale), ranks)]


def on_rank(rank: int, world: int, port: int, directory: Path, work: Callable[[Path], Any]) -> None:
    """Run work as one of the processes that torchrun would start."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    work(directory)


def measure_on_two_ranks(directory: Path) -> None:
    """Measure, and measure again with samples of rank 1 that are not finite; the group is closed in any case."""
    try:
        with ranks_of_environment() as ranks:
            assert isinstance(ranks, ProcessGroup) and ranks.world_size == 2
            (directory / f"rank{ranks.rank}.json").write_text(json.dumps(measured_by(ranks)))
            try:
                measured_by(ranks, scale=float("nan") if ranks.rank else 1.0)
            except UserError as error:
                (directory / "error").write_text(str(error))
    finally:
        assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of two gloo ranks, of which the second one has exited with code 2."""
    directory, port = tmp_path_factory.mktemp("ranks"), free_port()
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=on_rank, args=(r, 2, port, directory, measure_on_two_ranks)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 2]
    return directory


def test_two_ranks_measure_the_bits_of_one_process(two_ranks: Path) -> None:
    expected = measured_by()
    assert expected and all(row["nfe"] == 1 and row["weights"] == "ema" for row in expected)
    for rank in (0, 1):
        assert json.loads((two_ranks / f"rank{rank}.json").read_text()) == expected


def test_error_of_one_rank_is_raised_on_rank_zero(two_ranks: Path) -> None:
    assert "10 of the samples 10 to 19 are not finite, number 10 first" in (two_ranks / "error").read_text()


def test_features_of_chunks_are_those_of_all_samples_in_order() -> None:
    features = gather_features(source(), DigitMetrics(), 20, SingleProcess())
    assert features["labels"].tolist() == [i % 10 for i in range(N)]
    assert features["power_high"].dtype == torch.float32 and features["features"].shape == (N, 32)
    suite, samples = DigitMetrics(), source().take(range(N))
    whole = {m.metric: m.value for m in measure(suite, samples.x, samples.labels)}
    assert {row["metric"]: row["value"] for row in measured_by()} == pytest.approx(whole, rel=1e-5)


class FirstOfTwo:
    """Two ranks as rank 0 sees them."""

    rank, world_size = 0, 2

    def all_gather(self, value: Any) -> list[Any]:
        return [value, None]

    gather = all_gather


@pytest.mark.parametrize("ranks", [SingleProcess(), FirstOfTwo()], ids=["one", "two"])
def test_too_few_samples_are_a_user_error(ranks: Ranks) -> None:
    with pytest.raises(UserError, match="needs 33 samples or more, not 20"):
        on_rank_zero(ranks, lambda: DigitMetrics().compute({"features": torch.zeros(20, 32)}))
    with pytest.raises(UserError, match="needs 33 samples or more, not 32"):
        Evaluator(DigitMetrics(), n=N, every=0).measure(replace(source(), n=32), ranks)


def test_error_without_a_message_still_ends_all_ranks() -> None:
    def work() -> None:
        raise ValueError

    with pytest.raises(UserError, match=r"^ValueError\(\)$"):
        on_all_ranks(SingleProcess(), work)


@pytest.mark.parametrize("terminal, shown", [(False, "samples 20 to 39 done"), (True, "evaluating")])
def test_console_shows_progress(terminal: bool, shown: str) -> None:
    console = Console(file=StringIO(), width=200, force_terminal=terminal)
    gather_features(source(), DigitMetrics(), 20, SingleProcess(), console)
    assert shown in console.file.getvalue()  # type: ignore[attr-defined]


def test_key_changes_with_everything_that_defines_an_evaluation() -> None:
    parts: dict[str, Any] = {"source": source().describe(), "suite": {"name": "a"}, "n": N, "chunk": 20}
    others = [
        {"source": replace(source(), seed=4).describe()},
        {"source": replace(source(), identity={"config_digest": "1" * 12}).describe()},
        {"source": source(2.0).describe()},
        {"suite": {"name": "b"}},
        {"n": N + 1},
        {"chunk": 10},
    ]
    keys = {key_of(definition(**parts | other)) for other in [{}, *others]}
    assert len(keys) == 1 + len(others)


def test_record_has_provenance() -> None:
    evaluation = Evaluator(DigitMetrics(), n=N, every=0).describe(source())
    content = record(evaluation, [Measurement("fd", 1.0, N, "p")], CPU, 2, {"wall": 1.5})
    assert content["key"] == key_of(evaluation) and content["timing_s"] == {"wall": 1.5}
    assert len(content["evaluation"]["source"]["weights_sha256"]) == 64 and content["evaluation"]["source"]["seed"] == 3
    assert content["results"][0]["protocol"] == "p" and content["env"]["world_size"] == 2
    assert {"torch", "torchmetrics", "torch_fidelity", "device"} <= content["env"].keys()


def test_combined_suite_measures_what_its_suites_do() -> None:
    shapes = ShapeEvalSuite(prompts_per_tag=4, images_per_tag=4)
    pixels = FeatureMetrics(RandomConvolutions(8), FEW, metrics=("fd", "power"))
    both, ids = CombinedSuite({"shapes": shapes, "pixels": pixels}), torch.arange(24)
    assert isinstance(both, PromptMetric) and torch.equal(both.conditions(ids), shapes.conditions(ids))
    real = shapes.ground_truth(ids)
    assert measure(both, real, ids) == measure(shapes, real, ids) + measure(pixels, real, ids)
    assert not isinstance(CombinedSuite({"pixels": pixels}), PromptMetric)
    with pytest.raises(UserError, match="a and b have prompts of their own"):
        CombinedSuite({"a": shapes, "b": shapes})
    with pytest.raises(UserError, match="fd in the 8 features of random-convolutions needs 9 samples or more, not 8"):
        Evaluator(both, n=8, every=0)


def test_combined_suite_renames_a_repeated_metric() -> None:
    suites = {n: FeatureMetrics(RandomConvolutions(8, s), FEW, metrics=("kid",)) for n, s in {"a": 0, "b": 1}.items()}
    x = FEW.split["test"][0]
    one, other = measure(CombinedSuite(suites), x)
    assert (one.metric, other.metric) == ("kid", "b_kid") and one.protocol != other.protocol
    assert [m.value for m in (one, other)] == [measure(p, x)[0].value for p in suites.values()]


def test_monitor_needs_measurements_in_training() -> None:
    with pytest.raises(UserError, match=r"evaluation\.monitor = fd needs measurements in training"):
        Evaluator(DigitMetrics(), every=0, monitor="fd")


def test_only_a_prompt_metric_supplies_conditions() -> None:
    data = Digits()
    drawn = Evaluator(DigitMetrics(), n=N, every=0).source(Sampler("tanh", Tanh(), 1, "ema"), data, CPU, N)
    assert torch.equal(drawn.conditioning.conditions(torch.arange(12)), torch.arange(12) % 10)
