"""The torchmetrics: batches and ranks give the pure functions' values, and reset, pickling and collections work."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from ranks import free_port
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from fgm.evaluation.distances import cmmd, kid, prdc
from fgm.evaluation.frechet import Moments, fd_infinity, frechet_distance
from fgm.evaluation.metrics import CMMD, PRDC, FDInfinity, FrechetDistance, KernelDistance
from fgm.utils.random import keyed_generator

D = 6


def features(n: int, index: int) -> Tensor:
    return torch.randn(n, D, generator=keyed_generator("metrics", index=index))


X, Y = features(120, 0) + 0.3, features(150, 1)
METRICS: dict[str, Callable[[], Metric]] = {
    "fd": lambda: FrechetDistance(Moments.of(Y)),
    "fd_infinity": lambda: FDInfinity(Moments.of(Y)),
    "kid": lambda: KernelDistance(Y, subsets=5, subset_size=50),
    "cmmd": lambda: CMMD(Y),
    "prdc": lambda: PRDC(Y[:120], k=3, k_density=5),
}


def values(metric: Metric) -> list[float]:
    value = metric.compute()
    return [v.item() for v in (value.values() if isinstance(value, dict) else [value])]


def expected(name: str) -> list[float]:
    k, p = kid(X, Y, 5, 50), prdc(X, Y[:120])
    return {
        "fd": [frechet_distance(Moments.of(X), Moments.of(Y))],
        "fd_infinity": [fd_infinity(X, Moments.of(Y)).value],
        "kid": [k.mean, k.std],
        "cmmd": [cmmd(X, Y)],
        "prdc": [p.precision, p.recall, p.density, p.coverage],
    }[name]


@pytest.mark.parametrize("name", METRICS)
def test_metric_updated_in_batches_equals_the_pure_function(name: str) -> None:
    metric = METRICS[name]()
    for part in X.split(37):
        metric.update(part)
    assert values(metric) == pytest.approx(expected(name), rel=1e-12)
    metric.reset()
    metric.update(X)
    assert values(pickle.loads(pickle.dumps(metric))) == expected(name)


def test_metrics_form_a_collection() -> None:
    collection = MetricCollection({"fd": METRICS["fd"](), "cmmd": METRICS["cmmd"]()})
    collection.update(X)
    assert {k: v.item() for k, v in collection.compute().items()} == {
        "fd": expected("fd")[0],
        "cmmd": expected("cmmd")[0],
    }


def sync_on_rank(rank: int, port: int, directory: Path) -> None:
    """Update rank r with the r-th half of the samples, and save the synced values."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    synced = {}
    for name, make in METRICS.items():
        metric = make()
        metric.update(X[:60] if rank == 0 else X[60:])
        synced[name] = values(metric)
    torch.save(synced, directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_metrics_synced_over_two_ranks_equal_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(sync_on_rank, (free_port(), tmp_path), nprocs=2)
    for rank in (0, 1):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            assert value == pytest.approx(expected(name), rel=1e-12), name
