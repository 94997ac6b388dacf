"""The one way from a sampler to measurements, for training, its end and `make eval`.

Samples are measured in chunks; rank r computes the features of every world-size-th chunk, and rank 0 the metrics from
all of them in order. One process and many therefore get the same bits. results.json has

    schema, key, date
    results        measurements
    evaluation     what defines them: source, suite, n, chunk; the key is its hash
    env            torch, torchmetrics, torch_fidelity, python, device, world_size, tf32
    timing_s       wall seconds
"""

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from fgm.data import Data
from fgm.evaluation import Features, MetricSuite, PromptMetric
from fgm.evaluation.sampling import Sampler, conditioning
from fgm.evaluation.sources import FolderSource, SamplerSource, SampleSource, chunks
from fgm.utils.distributed import Ranks, SingleProcess, on_all_ranks, on_rank_zero
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

Mode = Literal["min", "max"]
CHUNK = 1000  # samples, unless one batch is larger
SCHEMA = 2  # of results.json
PROMPT_METHODS = ("prompt_ids", "conditions", "prompts", "ground_truth", "grades")


@validated
@dataclass(frozen=True)
class Evaluator:
    """What to measure, how often and on how many samples.

    Args:
        suite: the metrics.
        n: samples at the end of training.
        every: steps between measurements in training; 0 for none.
        n_in_training: samples of such a measurement.
        seed: of the samples; the same for every measurement, so that curves show only the training.
        batch: samples at once.
        monitor: metric whose best value in training selects the weights to keep, see fgm.training.evaluation.
        mode: whether a smaller (min) or larger (max) value is better.

    Raises:
        UserError: monitor without measurements in training, or n is too small for the suite's metrics.
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
        self.require_samples(min(self.n, self.n_in_training) if self.every else self.n)

    def require_samples(self, n: int) -> None:
        """Raise a UserError if n samples are too few for the suite."""
        if hasattr(self.suite, "require_samples"):
            self.suite.require_samples(n)

    def source(
        self, sampler: Sampler, data: Data, device: Any, n: int, seed: int | None = None, **identity: Any
    ) -> SamplerSource:
        """Return samples 0 to n - 1 of a sampler, under the conditions of this evaluator's suite."""
        seed = self.seed if seed is None else seed
        conditions = conditioning(data, self.suite, seed)
        mode = quantise_mode(self.suite)
        return SamplerSource(sampler.decoded(data), seed, n, data.shape, conditions, device, self.batch, identity, mode)

    def measure(
        self, source: SampleSource, ranks: Ranks | None = None, console: Console | None = None
    ) -> list[Measurement]:
        """Return the measurements of all samples of a source, on every rank; a console shows progress.

        Raises:
            UserError: the samples are too few, one of them is not finite, or a folder's label is out of range.
        """
        ranks = ranks or SingleProcess()
        self.require_samples(source.n)
        if isinstance(source, FolderSource):
            source.require_classes(getattr(self.suite, "num_classes", 0))
        features = gather_features(source, self.suite, self.chunk(source), ranks, console)
        measured = on_rank_zero(ranks, lambda: self.suite.compute(features))
        return [replace(m, nfe=source.nfe, weights=source.weights) for m in measured]

    def chunk(self, source: SampleSource) -> int:
        """Return the number of samples at once, a multiple of the sampler's batch."""
        batch = source.batch if isinstance(source, SamplerSource) else 1
        return batch * max(1, CHUNK // batch)

    def describe(self, source: SampleSource) -> dict[str, Any]:
        """Return what defines a measurement of the source, as plain containers."""
        return definition(source.describe(), self.suite.identity(), source.n, self.chunk(source))


def gather_features(
    source: SampleSource, suite: MetricSuite, chunk: int, ranks: Ranks, console: Console | None = None
) -> Features:
    """Return the features of all samples in their order on rank 0, and nothing elsewhere."""
    parts = chunks(source.n, chunk)
    mine = parts[ranks.rank :: ranks.world_size]

    @torch.no_grad()
    def extract() -> list[Features]:
        drawn = (source.take(part) for part in progress(mine, console if ranks.rank == 0 else None))
        found = (suite.features(samples.x, samples.labels) for samples in drawn)
        return [{k: x.float() if x.is_floating_point() else x for k, x in features.items()} for features in found]

    gathered = ranks.gather(on_all_ranks(ranks, extract))
    if gathered is None:
        return {}
    ordered = [gathered[i % ranks.world_size][i // ranks.world_size] for i in range(len(parts))]
    return {name: torch.cat([part[name] for part in ordered]) for name in ordered[0]}


def progress(parts: list[range], console: Console | None) -> Iterator[range]:
    """Yield the parts, with a progress bar on a terminal and a line for each part elsewhere."""
    if console is None:
        yield from parts
    elif console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            yield from bar.track(parts, description="evaluating")
    else:
        for part in parts:
            yield part
            console.print(f"samples {part.start} to {part.stop - 1} done")


def quantise_mode(suite: Any) -> Any:
    """Return how samples are quantised for a suite."""
    return getattr(suite, "mode", "round")


class CombinedSuite:
    """Several suites that measure the same samples; at most one of them is a PromptMetric, and then this is one too.

    Args:
        suites: by name; a metric that an earlier suite has too is reported as <name>_<metric>.

    Raises:
        UserError: two suites have prompts of their own, or quantise samples in different modes.
    """

    def __init__(self, suites: dict[str, Any]) -> None:
        self.suites: dict[str, MetricSuite] = dict(suites)
        prompted = {name: suite for name, suite in suites.items() if isinstance(suite, PromptMetric)}
        modes = {quantise_mode(suite) for suite in suites.values()}
        if len(prompted) > 1:
            raise UserError(f"evaluation.suite.suites: {' and '.join(prompted)} have prompts of their own; keep one")
        if len(modes) > 1:
            raise UserError(f"evaluation.suite.suites: quantise by {' and by '.join(sorted(modes))}; choose one")
        self.mode = modes.pop()
        self.num_classes = min((n for s in suites.values() if (n := getattr(s, "num_classes", 0))), default=0)
        for suite in prompted.values():
            for method in PROMPT_METHODS:
                setattr(self, method, getattr(suite, method))

    def require_samples(self, n: int) -> None:
        for suite in self.suites.values():
            if hasattr(suite, "require_samples"):
                suite.require_samples(n)

    def identity(self) -> dict[str, Any]:
        return {name: suite.identity() for name, suite in self.suites.items()}

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        """Return the features of all suites, keyed <suite>/<feature>."""
        of_suites = {name: suite.features(x_0, labels) for name, suite in self.suites.items()}
        return {f"{name}/{key}": values for name, features in of_suites.items() for key, values in features.items()}

    def compute(self, features: Features) -> list[Measurement]:
        def own(name: str) -> Features:
            return {key.removeprefix(f"{name}/"): x for key, x in features.items() if key.startswith(f"{name}/")}

        return self.joined({name: suite.compute(own(name)) for name, suite in self.suites.items()})

    def reference_values(self) -> list[Measurement]:
        return self.joined({name: suite.reference_values() for name, suite in self.suites.items()})

    def joined(self, measured: dict[str, list[Measurement]]) -> list[Measurement]:
        owner = {m.metric: name for name, found in reversed(measured.items()) for m in found}
        return [
            m if owner[m.metric] == name else replace(m, metric=f"{name}_{m.metric}")
            for name, found in measured.items()
            for m in found
        ]


def definition(source: dict[str, Any], suite: dict[str, Any], n: int, chunk: int) -> dict[str, Any]:
    """Return what defines an evaluation of n samples, `chunk` at once, as plain containers."""
    return {"source": source, "suite": suite, "n": n, "chunk": chunk, "torch": torch.__version__}


def key_of(evaluation: dict[str, Any]) -> str:
    """Return sixteen hex digits."""
    return sha256(json.dumps(evaluation, sort_keys=True).encode()).hexdigest()[:16]


def record(
    evaluation: dict[str, Any],
    results: list[Measurement],
    device: torch.device,
    world_size: int,
    timing: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of a results.json."""
    tf32 = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    env: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(device),
    }
    env |= {"world_size": world_size, "tf32": tf32}
    for package in ("torchmetrics", "torch-fidelity"):
        try:
            env[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            env[package.replace("-", "_")] = None
    return {
        "schema": SCHEMA, "key": key_of(evaluation), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": [m.row() for m in results], "evaluation": evaluation, "env": env, "timing_s": timing,
    }  # fmt: skip


def device_name(device: torch.device) -> str:
    """Return the device as rows and results.json state it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}"
