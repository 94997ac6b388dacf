"""What is measured, how often and on how many samples: the one way from a sampler to measurements.

Training, its end and `make eval` all ask an Evaluation. Samples are the same function of (seed, index) for each of
them, and lie in the same shards: a measurement that was cut off goes on, and one that is there is not made again.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt
from rich.console import Console

from fgm.data import Data
from fgm.evaluation import MetricSuite
from fgm.evaluation.conditioning import conditioning
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.provenance import definition, key_of
from fgm.evaluation.sampling import Sampler, decoded
from fgm.evaluation.several import CombinedSuite, mode_of
from fgm.evaluation.shards import Plan, evaluate
from fgm.evaluation.sources import SampleSource
from fgm.evaluation.sources.sampler import SamplerSource
from fgm.utils.distributed import Ranks, SingleProcess
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

Mode = Literal["min", "max"]
SHARD = 1000  # samples, unless one batch is larger


@validated
@dataclass(frozen=True)
class Evaluator:
    """What to measure, how often and on how many samples.

    Args:
        suite: the metrics.
        n: samples at the end.
        every: cycles between measurements in training; 0 for none.
        n_in_training: samples of such a measurement.
        seed: of the samples; the same at every measurement, so that curves show the training alone.
        batch: samples at once.
        monitor: metric whose best value selects the weights to keep, see fgm.training.best.
        mode: whether less or more of it is better.

    Raises:
        UserError: the best of no measurements is asked for, or n is too small for the suite's features.
    """

    suite: MetricSuite
    n: PositiveInt = 10_000
    every: NonNegativeInt = 100
    n_in_training: PositiveInt = 2000
    seed: int = 1234
    batch: PositiveInt = 1000
    monitor: str | None = None
    mode: Mode = "min"

    def __post_init__(self) -> None:
        if self.monitor and not self.every:
            raise UserError(
                f"evaluation.monitor = {self.monitor} needs measurements in training: give evaluation.every"
            )
        self.require(min(self.n, self.n_in_training) if self.every else self.n)

    def require(self, n: int) -> None:
        """Refuse an n that is too small for the suite's features."""
        if isinstance(self.suite, FeatureMetrics | CombinedSuite):
            self.suite.require(n)

    def source(
        self, sampler: Sampler, data: Data, device: Any, n: int, seed: int | None = None, **identity: Any
    ) -> SamplerSource:
        """Samples 0 to n - 1 of a sampler, as this evaluation's suite asks for them."""
        seed = self.seed if seed is None else seed
        shown, asked, mode = decoded(sampler, data), conditioning(data, self.suite, seed), mode_of(self.suite)
        return SamplerSource(shown, seed, n, data.shape, asked, device, self.batch, identity, mode)

    def plan(self, source: SampleSource, place: Path, shard_size: int | None = None) -> tuple[Plan, dict[str, Any]]:
        """Where the source's shards lie, <place>/evaluation/<key>, and all that the key stands for.

        Raises:
            UserError: the borders of shards would cut a sampler's batches, or the source is too small for the suite.
        """
        self.require(source.n)
        size = whole_batches(source.batch if isinstance(source, SamplerSource) else 1, shard_size)
        told = definition(source.describe(), self.suite.identity(), source.n, size)
        return Plan(source.n, size, place / "evaluation" / key_of(told)), told

    def measure(
        self, source: SampleSource, plan: Plan, ranks: Ranks | None = None, console: Console | None = None
    ) -> list[Measurement]:
        """On every rank; with what only the source knows."""
        measured = evaluate(source, self.suite, plan, ranks or SingleProcess(), console)
        return [replace(m, nfe=source.nfe, weights=source.weights) for m in measured]


def whole_batches(batch: int, asked: int | None = None) -> int:
    """The size of a shard, so that none ends within a batch."""
    size = asked or batch * max(1, SHARD // batch)
    if size % batch:
        raise UserError(f"shard_size = {size} must be a multiple of the evaluator's batch, {batch}")
    return size
