"""Times of several ways to do one work, taken in turn, so that a machine that slows down slows all of them.

Every repetition runs each arm once, forwards and backwards in turn (a b c, c b a, ...), after one untimed round that
fills caches. A ratio is that of the medians; beside it stand the smallest and the largest ratio of one repetition.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from typing import Any

from fgm.utils.records import Measurement

Times = dict[str, list[float]]  # seconds of each repetition


def interleaved(
    arms: Mapping[str, Callable[[], object]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Seconds of every arm in every repetition; an arm returns when its work is done."""
    times: Times = {name: [] for name in arms}
    for name, timed in order(arms, repetitions):
        began = clock() if timed else 0.0
        arms[name]()
        if timed:
            times[name].append(clock() - began)
    return times


def order(names: Iterable[str], repetitions: int) -> Iterator[tuple[str, bool]]:
    """Whose turn it is, and whether it is timed."""
    arms = list(names)
    yield from ((name, False) for name in arms)
    for repetition in range(repetitions):
        yield from ((name, True) for name in arms[:: -1 if repetition % 2 else 1])


def ratios(times: Times, wanted: Mapping[str, tuple[str, str]], **shared: Any) -> list[Measurement]:
    """How much dearer one arm is than another, where both were timed; low and high are those of one repetition.

    Args:
        wanted: the two arms by the metric's name.
        shared: what all measurements say besides.
    """
    rows = []
    for metric, (arm, of) in wanted.items():
        if of in times:
            each = [a / b for a, b in zip(times[arm], times[of], strict=True)]
            spread = {"low": min(each), "high": max(each)}
            rows.append(Measurement(metric, median(times[arm]) / median(times[of]), **shared, extra=spread))
    return rows
