"""Interleaved timing of several arms that do the same work, and the row that records it.

Every repetition runs each arm once, in alternating order (a b c, c b a, ...), after one untimed warm-up round, so that
a machine that slows down slows all arms. A ratio is that of the medians, with the smallest and the largest ratio within
one repetition beside it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fgm.analysis.tables import summary
from fgm.cli.config import compose_experiment, digest
from fgm.cli.runs import provenance
from fgm.utils.errors import UserError, hint
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, append_row

Times = dict[str, list[float]]  # seconds of each repetition


def interleaved(
    arms: Mapping[str, Callable[[], object]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Return the seconds of every arm in every repetition; an arm returns when its work is done."""
    times: Times = {name: [] for name in arms}
    for name, timed in order(arms, repetitions):
        began = clock() if timed else 0.0
        arms[name]()
        if timed:
            times[name].append(clock() - began)
    return times


def order(names: Iterable[str], repetitions: int) -> Iterator[tuple[str, bool]]:
    """Yield which arm runs next, and whether it is timed."""
    arms = list(names)
    yield from ((name, False) for name in arms)
    for repetition in range(repetitions):
        yield from ((name, True) for name in arms[:: -1 if repetition % 2 else 1])


def ratios(times: Times, wanted: Mapping[str, tuple[str, str]], **shared: Any) -> list[Measurement]:
    """Return the time ratio of each wanted pair of arms, if both were timed.

    Args:
        wanted: metric -> (numerator, denominator).
        shared: what all measurements share: n, protocol, nfe, weights.
    """
    rows = []
    for metric, (arm, other) in wanted.items():
        if other in times:
            each = [a / b for a, b in zip(times[arm], times[other], strict=True)]
            spread = {"low": min(each), "high": max(each)}
            rows.append(Measurement(metric, median(times[arm]) / median(times[other]), **shared, extra=spread))
    return rows


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_arguments(arguments: list[str], defaults: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split key=value arguments into the benchmark's own settings and the config of experiment=<name> and overrides.

    Raises:
        UserError: a setting is not a positive number where its default is one, or none of its choices where its
            default is a tuple of them.
    """
    own = {key: default[0] if isinstance(default, tuple) else default for key, default in defaults.items()}
    pairs = [argument.partition("=")[::2] for argument in arguments]
    for key, value in pairs:
        default = defaults.get(key)
        if isinstance(default, int) and not (value.isdigit() and int(value)):
            raise UserError(f"{key} = {value} must be a whole number from 1")
        if isinstance(default, tuple) and value not in default:
            raise UserError(f"{key} = {value}: unknown; {hint(value, default)}")
        own |= {key: int(value) if isinstance(default, int) else value} if key in defaults else {}
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in {*defaults, "experiment"}]
    return own, compose_experiment(dict(pairs).get("experiment", "digits_fgm"), overrides)


def report(
    subject: str, config: dict[str, Any], own: dict[str, Any], results: list[Measurement], times: Times, **cost: Any
) -> None:
    """Print the results and append a row to experiments/bench/runs.jsonl; study_digest ignores seed, repetitions."""
    console, path = plain_console(), Path(config["experiments"]) / "bench" / "runs.jsonl"
    study = {"config": config | {"seed": None}, "bench": own | {"subject": subject, "repetitions": ""}}
    row = provenance(config) | {"study_digest": digest(study), "subject": subject}
    row |= {key: own[key] for key in ("extractor",) if key in own} | cost
    seconds = {arm: [round(s, 4) for s in each] for arm, each in times.items()}
    append_row(path, row | {"seconds": seconds, "results": [m.row() for m in results]})
    console.print(summary(results, f"{subject} of {config['experiment']}, {row['device']}"))
    console.print(f"row in {path} (make table)")
