"""What was measured, for a terminal of 80 columns: metrics down, samplers across, below what each value stands on.

Ceilings, which say what noise gets, are the same for all runs and are left to results.json.
"""

from collections import defaultdict
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fgm.analysis.run_table import sampler_name
from fgm.utils.records import Measurement, counted


def summary(results: Sequence[Measurement], title: str) -> Group:
    shown = [m for m in results if not m.protocol.startswith("ceiling")]
    columns: dict[str, dict[str, str]] = defaultdict(dict)
    for m in shown:
        columns[column_of(m, columns)][m.metric] = f"{m.value:.3g}" if abs(m.value) < 1000 else f"{m.value:.0f}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name, values in columns.items():
        table.add_column(name, justify="right", min_width=max(map(len, values.values())))
    for metric in dict.fromkeys(m.metric for m in shown):
        table.add_row(metric, *(values.get(metric, "") for values in columns.values()))
    return Group(table, *map(Text, standing(shown)))


def column_of(m: Measurement, columns: dict[str, dict[str, str]]) -> str:
    """Its sampler; where that has such a value already, as one seed of several has, its protocol's beginning."""
    name = sampler_name(m) + (f", {counted(m.nfe, 'call')}" if m.weights == "teacher" and m.nfe > 1 else "")
    name = "folder" if m.weights == "folder" else "floor" if m.weights == "real" else name
    return m.protocol.partition(";")[0] if m.metric in columns.get(name, {}) else name


def standing(shown: Sequence[Measurement]) -> list[str]:
    """Each protocol and n once, after the metrics that have it; of a floor, which measures alike, its name."""
    metrics: dict[str, dict[str, None]] = defaultdict(dict)
    for m in shown:
        told = m.protocol.partition(";")[0] if m.weights == "real" else m.protocol
        metrics[f"{told}, n = {m.n}"][m.metric] = None
    return [f"{', '.join(names)}: {protocol}" for protocol, names in metrics.items()]
