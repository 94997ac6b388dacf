"""One process, two gloo ranks and a run that was killed twice give the same bits; a complaint of one rank ends all."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from ranks import free_port
from rich.console import Console
from safetensors.torch import load_file

from fgm.evaluation import measure
from fgm.evaluation.conditioning import balanced
from fgm.evaluation.images import DigitMetrics
from fgm.evaluation.provenance import definition, key_of, record
from fgm.evaluation.sampling import Sampler
from fgm.evaluation.shards import Plan, evaluate, merged
from fgm.evaluation.sources.sampler import SamplerSource
from fgm.utils.distributed import ProcessGroup, Ranks, SingleProcess, on_all_ranks, on_rank_zero, ranks_of_environment
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement

N, SHARD = 50, 20  # three shards, the last one short
CPU = torch.device("cpu")


class Tanh(torch.nn.Module):
    """A sampler with floating-point arithmetic worth the name, that can be told when to stop."""

    def __init__(self, stop: Callable[[torch.Tensor], None] = lambda z: None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, 64, generator=keyed_generator("tanh", index=0)) / 8)
        self.stop = stop

    def forward(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        self.stop(condition)
        return (z.flatten(1) @ self.weight).unflatten(1, (1, 8, 8)).tanh() + condition.view(-1, 1, 1, 1) / 50


def source(net: torch.nn.Module | None = None) -> SamplerSource:
    return SamplerSource(Sampler("tanh", net or Tanh(), 1, "ema"), 3, N, (1, 8, 8), balanced(10), CPU, 10)


def plan(directory: Path) -> Plan:
    return Plan(N, SHARD, directory)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks have: a sum over two threads has other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Measurement]]:
    """One process, without a break."""
    directory = tmp_path_factory.mktemp("reference")
    return directory, evaluate(source(), DigitMetrics(), plan(directory), SingleProcess())


def assert_same(directory: Path, reference: Path) -> None:
    """The same files with the same bytes, and nothing else."""
    there, wanted = ({p.name: p.read_bytes() for p in (d / "shards").iterdir()} for d in (directory, reference))
    assert there == wanted and len(wanted) == 3


def on_rank(rank: int, world: int, port: int, directory: Path, work: Callable[[Path], Any]) -> None:
    """One of several processes that torchrun would start."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    work(directory)


def spawn(work: Callable[[Path], Any], directory: Path, world: int = 1) -> list[int | None]:
    """Exit codes."""
    port, context = free_port(), torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=on_rank, args=(r, world, port, directory, work)) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    return [process.exitcode for process in ranks]


def kill_in_second_shard(directory: Path) -> None:
    """The fourth batch is the second half of shard 1."""
    drawn: list[int] = []

    def stop(condition: torch.Tensor) -> None:
        drawn.append(len(condition))
        if len(drawn) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate(source(Tanh(stop)), DigitMetrics(), plan(directory), SingleProcess())


def test_a_killed_evaluation_goes_on_with_the_same_bits(
    reference: tuple[Path, list[Measurement]], tmp_path: Path
) -> None:
    assert spawn(kill_in_second_shard, tmp_path) == [-signal.SIGKILL]
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["00000000-00000020.safetensors"]
    drawn: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        evaluate(source(Tanh(interrupt_after(drawn, 3))), DigitMetrics(), plan(tmp_path), SingleProcess())
    assert len(list((tmp_path / "shards").iterdir())) == 2
    drawn.clear()
    resumed = evaluate(source(Tanh(interrupt_after(drawn, 99))), DigitMetrics(), plan(tmp_path), SingleProcess())
    assert resumed == reference[1] and len(drawn) == 1
    assert_same(tmp_path, reference[0])


def interrupt_after(drawn: list[int], batches: int) -> Callable[[torch.Tensor], None]:
    def stop(condition: torch.Tensor) -> None:
        drawn.append(len(condition))
        if len(drawn) == batches:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("damage", ["truncated", "emptied", "of another range"])
def test_a_damaged_shard_is_computed_again(
    damage: str, reference: tuple[Path, list[Measurement]], tmp_path: Path
) -> None:
    evaluate(source(), DigitMetrics(), plan(tmp_path), SingleProcess())
    one, other = (plan(tmp_path).file(shard) for shard in plan(tmp_path).shards()[:2])
    content = {"truncated": one.read_bytes()[:-7], "emptied": b"", "of another range": other.read_bytes()}[damage]
    one.write_bytes(content)
    assert plan(tmp_path).missing() == [range(20)]
    assert evaluate(source(), DigitMetrics(), plan(tmp_path), SingleProcess()) == reference[1]
    assert_same(tmp_path, reference[0])


def test_a_finished_evaluation_draws_nothing(reference: tuple[Path, list[Measurement]]) -> None:
    drawn: list[int] = []
    assert (
        evaluate(source(Tanh(interrupt_after(drawn, 1))), DigitMetrics(), plan(reference[0]), SingleProcess())
        == reference[1]
    )
    assert not drawn


def test_a_suite_hears_the_rows_of_all_samples_in_their_order(reference: tuple[Path, list[Measurement]]) -> None:
    rows = merged(plan(reference[0]))
    assert rows["labels"].tolist() == [i % 10 for i in range(N)]
    assert rows["features"].dtype == torch.float32 and rows["features"].shape == (N, 32)
    first = load_file(plan(reference[0]).file(range(20)))
    assert torch.equal(rows["features"][:20], first["features"])
    suite, samples = DigitMetrics(), source().take(range(N))
    whole = {m.metric: m.value for m in measure(suite, samples.x, samples.labels)}
    assert {m.metric: m.value for m in reference[1]} == pytest.approx(whole, rel=1e-5)


class Doubled(Tanh):
    def __init__(self) -> None:
        super().__init__()
        self.weight.data *= 2


def two_ranks(directory: Path) -> None:
    """What both ranks of a group do; however they end, the group is closed by then."""
    try:
        with ranks_of_environment() as ranks:
            assert isinstance(ranks, ProcessGroup) and ranks.world_size == 2
            measure_twice(ranks, directory)
    finally:
        assert not torch.distributed.is_initialized()


def measure_twice(ranks: Ranks, directory: Path) -> None:
    """The second time, the samples of rank 1 are not finite."""
    measured = [m.row() for m in evaluate(source(), DigitMetrics(), plan(directory / "good"), ranks)]
    (directory / f"said-by-{ranks.rank}.json").write_text(json.dumps(measured))
    broken = source(Tanh(lambda condition: None) if ranks.rank == 0 else NaN())
    try:
        evaluate(broken, DigitMetrics(), plan(directory / "broken"), ranks)
    except UserError as refusal:
        (directory / "refusal").write_text(str(refusal))


class NaN(Tanh):
    def forward(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return super().forward(z, condition) * float("nan")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes of a gloo group have been; the second one owns shard 1 and leaves with exit code 2."""
    directory = tmp_path_factory.mktemp("ranks")
    assert spawn(two_ranks, directory, world=2) == [0, 2]
    return directory


def test_two_gloo_ranks_measure_what_one_process_does(reference: tuple[Path, list[Measurement]], ranks: Path) -> None:
    assert_same(ranks / "good", reference[0])
    for rank in (0, 1):
        assert json.loads((ranks / f"said-by-{rank}.json").read_text()) == [m.row() for m in reference[1]]


def test_a_complaint_of_one_rank_ends_all(ranks: Path) -> None:
    assert "20 of the samples 20 to 39 are not finite, number 20 first" in (ranks / "refusal").read_text()
    names = {path.name for path in (ranks / "broken" / "shards").iterdir()}
    assert names == {"00000000-00000020.safetensors", "00000040-00000050.safetensors"}


class Two:
    """The wire as rank 0 of two sees it."""

    rank, world_size = 0, 2

    def all_gather(self, value: Any) -> list[Any]:
        return [value, None]


@pytest.mark.parametrize("ranks", [SingleProcess(), Two()], ids=["alone", "of two"])
def test_too_few_samples_are_a_refusal(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs 33 samples or more, not 20"):
        on_rank_zero(ranks, lambda: DigitMetrics().compute({"features": torch.zeros(20, 32)}))
    with pytest.raises(UserError, match="n = 51: the source holds 50 samples"):
        evaluate(source(), DigitMetrics(), replace(plan(tmp_path), n=51), ranks)


def test_a_complaint_without_words_is_a_complaint() -> None:
    def work() -> None:
        raise ValueError

    with pytest.raises(UserError, match=r"^ValueError\(\)$"):
        on_all_ranks(SingleProcess(), work)


def test_a_line_is_told_for_every_shard_where_there_is_no_terminal(tmp_path: Path) -> None:
    for expected in (["samples 0 to 19", "samples 20 to 39", "samples 40 to 49"], ["3 of 3 shards are there already"]):
        console = Console(file=StringIO(), width=200)
        evaluate(source(), DigitMetrics(), plan(tmp_path), SingleProcess(), console)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert [line.partition(":")[0] for line in lines] == expected


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=200, force_terminal=True)
    evaluate(source(), DigitMetrics(), plan(tmp_path), SingleProcess(), console)
    assert "evaluating" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_key_changes_with_all_that_defines_the_samples_and_the_rows() -> None:
    parts: dict[str, Any] = {"source": source().describe(), "suite": {"name": "a"}, "n": N, "shard_size": SHARD}
    others = [
        {"source": replace(source(), seed=4).describe()},
        {"source": replace(source(), identity={"config_digest": "1" * 12}).describe()},
        {"source": source(Doubled()).describe()},
        {"suite": {"name": "b"}},
        {"n": N + 1},
        {"shard_size": 10},
    ]
    keys = {key_of(definition(**parts | other)) for other in [{}, *others]}
    assert len(keys) == 1 + len(others) and key_of(definition(**parts)) in keys


def test_a_record_tells_where_its_numbers_come_from() -> None:
    evaluation = definition(source().describe(), {"name": "a"}, N, SHARD)
    told = record(evaluation, [Measurement("fd", 1.0, N, "p")], CPU, 2, {"wall": 1.5})
    assert told["schema"] == 1 and told["key"] == key_of(evaluation) and told["timing_s"] == {"wall": 1.5}
    assert len(told["evaluation"]["source"]["weights_sha256"]) == 64 and told["evaluation"]["source"]["seed"] == 3
    assert told["evaluation"]["index_range"] == [0, N] and told["results"][0]["protocol"] == "p"
    assert {"torch", "torchmetrics", "torch_fidelity", "device", "world_size"} <= told["env"].keys()
    assert told["env"]["world_size"] == 2 and told["env"]["torch_fidelity"]
