"""An evaluation in shards, which may be cut off and go on, alone or on many ranks, always with the same bits.

    <directory>/shards/<start>-<stop>.safetensors      the suite's rows of samples start to stop - 1

A shard is a fixed range of indices, and rank r computes every world-th shard from number r. A file is written beside
its name and renamed onto it, so that what is there is whole; a shard that is there is not computed again. Rank 0 joins
the shards in the order of their numbers. One process, two ranks and a resumed run therefore hand the suite the same
rows. The directory's name must be a key of all that defines the rows (provenance.py).
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fgm.evaluation import Features, MetricSuite
from fgm.evaluation.sources import SampleSource
from fgm.utils.distributed import Ranks, on_all_ranks, on_rank_zero
from fgm.utils.errors import UserError
from fgm.utils.files import replacing
from fgm.utils.records import Measurement

Tell = Callable[[range, float], None]


@dataclass(frozen=True)
class Plan:
    """Which samples, cut how, kept where."""

    n: int
    shard_size: int
    directory: Path

    def shards(self) -> list[range]:
        starts = range(0, self.n, self.shard_size)
        return [range(start, min(start + self.shard_size, self.n)) for start in starts]

    def file(self, shard: range) -> Path:
        return self.directory / "shards" / f"{shard.start:08d}-{shard.stop:08d}.safetensors"

    def missing(self) -> list[range]:
        return [shard for shard in self.shards() if not is_whole(self.file(shard), shard)]


def evaluate(
    source: SampleSource, suite: MetricSuite, plan: Plan, ranks: Ranks, console: Console | None = None
) -> list[Measurement]:
    """The suite's measurements of the source's first n samples, on every rank.

    Raises:
        UserError: a sample or the set of them is not fit to be measured; the shards that are done stay.
    """
    if plan.n > source.n:
        raise UserError(f"n = {plan.n}: the source holds {source.n} samples; give a smaller n")
    missing = set(on_rank_zero(ranks, plan.missing))  # asked once: the other ranks' shards must not appear in between
    mine = [shard for shard in plan.shards()[ranks.rank :: ranks.world_size] if shard in missing]
    with telling(console if ranks.rank == 0 else None, plan, len(missing), len(mine)) as tell:
        on_all_ranks(ranks, lambda: compute(source, suite, plan, mine, tell))
    return on_rank_zero(ranks, lambda: suite.compute(merged(plan)))


@torch.no_grad()
def compute(source: SampleSource, suite: MetricSuite, plan: Plan, shards: list[range], tell: Tell) -> None:
    for shard in shards:
        began = time.perf_counter()
        samples = source.take(shard)
        save_shard(plan.file(shard), shard, suite.features(samples.x, samples.labels))
        tell(shard, time.perf_counter() - began)


def save_shard(path: Path, shard: range, rows: Features) -> None:
    """Atomically; features as float32. Two names may share one tensor, which the file then holds twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: row.float() if row.is_floating_point() else row for name, row in rows.items()}
    rows = {name: row.clone(memory_format=torch.contiguous_format) for name, row in rows.items()}
    with replacing(path, shared=True) as temporary:
        save_file(rows, temporary, metadata=header(shard))


def header(shard: range) -> dict[str, str]:
    """In one entry, since safetensors keeps several in no fixed order."""
    return {"shard": json.dumps({"range": [shard.start, shard.stop], "count": len(shard)})}


def is_whole(path: Path, shard: range) -> bool:
    """Whether the file holds this shard; a damaged one counts as missing, and is computed again."""
    try:
        with safe_open(path, "pt") as file:
            counts = {file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
            return file.metadata() == header(shard) and counts == {len(shard)}
    except (OSError, SafetensorError):
        return False


def merged(plan: Plan) -> Features:
    """The rows of all samples, shard by shard in their order."""
    parts = []
    for shard in plan.shards():
        with safe_open(plan.file(shard), "pt") as file:
            parts.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def telling(console: Console | None, plan: Plan, missing: int, mine: int) -> Iterator[Tell]:
    """A progress bar on a terminal, a line a shard elsewhere, nothing without a console."""
    if console is None:
        yield lambda shard, seconds: None
        return
    total = len(plan.shards())
    if missing < total:
        console.print(f"{total - missing} of {total} shards are there already")
    if not console.is_terminal:
        yield lambda shard, seconds: console.print(f"samples {shard.start} to {shard.stop - 1}: {seconds:.1f} s")
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("evaluating", total=mine)
        yield lambda shard, seconds: progress.update(task, advance=1)
