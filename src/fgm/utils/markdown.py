"""Tables as Markdown: rows of cells, a value over several seeds, and what the values of each metric stand on."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any


def table_head(columns: Sequence[str]) -> list[str]:
    return [table_row(columns), "|" + " --- |" * len(columns)]


def table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def mean_and_sd(values: Sequence[float]) -> str:
    """1.5 ± 0.71; empty of none."""
    if not values:
        return ""
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.3g}" + (f" ± {spread:.2g}" if spread else "")


def protocols(results: Iterable[dict[str, Any]]) -> str:
    """Of rows of results: each protocol and n once, after the metrics that have it."""
    metrics: dict[str, dict[str, None]] = defaultdict(dict)
    for row in results:
        metrics[f"{row['protocol']}, n = {row['n']}"][row["metric"]] = None
    return "; ".join(f"{', '.join(names)}: {protocol}" for protocol, names in metrics.items()) + "."
