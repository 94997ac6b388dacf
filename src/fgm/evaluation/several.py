"""Several panels as one: the same samples, judged by each. Rows are kept under <panel>/<row>."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from fgm.data.pixels import Mode
from fgm.evaluation import Asking, Panel, Rows
from fgm.evaluation.panel import FeaturePanel
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement


class Panels:
    """Panels by name; a metric that an earlier panel has too is called <name>_<metric>.

    Raises:
        UserError: two of them turn samples into bytes by different modes.
    """

    def __init__(self, panels: dict[str, Panel]) -> None:
        self.panels = panels
        modes = {mode_of(panel) for panel in panels.values()}
        if len(modes) > 1:
            raise UserError(f"evaluation.panel.panels: quantise by {' and by '.join(sorted(modes))}; choose one")
        self.mode = modes.pop()

    def require(self, n: int) -> None:
        """Refuse an n that is too small for one of them."""
        for panel in self.panels.values():
            if isinstance(panel, FeaturePanel):
                panel.require(n)

    def identity(self) -> dict[str, Any]:
        return {name: panel.identity() for name, panel in self.panels.items()}

    def rows(self, x_0: Tensor, labels: Tensor | None) -> Rows:
        kept = {name: panel.rows(x_0, labels) for name, panel in self.panels.items()}
        return {f"{name}/{row}": values for name, rows in kept.items() for row, values in rows.items()}

    def judge(self, rows: Rows) -> list[Measurement]:
        return self.joined({name: panel.judge(under(name, rows)) for name, panel in self.panels.items()})

    def bounds(self) -> list[Measurement]:
        return self.joined({name: panel.bounds() for name, panel in self.panels.items()})

    def joined(self, measured: dict[str, list[Measurement]]) -> list[Measurement]:
        taken: dict[str, str] = {}
        return [renamed(m, name, taken) for name, found in measured.items() for m in found]


class AskingPanels(Panels):
    """Panels of which one asks; the others are told the numbers of its questions as labels."""

    def __init__(self, panels: dict[str, Panel], asking: Asking) -> None:
        super().__init__(panels)
        self.questions, self.conditions, self.prompts = asking.questions, asking.conditions, asking.prompts
        self.truth, self.verdicts = asking.truth, asking.verdicts


def several(panels: dict[str, Any]) -> Panels:
    """
    Args:
        panels: by name.

    Raises:
        UserError: two of them ask, and a sample can answer one question alone.
    """
    asking = {name: panel for name, panel in panels.items() if isinstance(panel, Asking)}
    if len(asking) > 1:
        raise UserError(f"evaluation.panel.panels: {' and '.join(asking)} ask questions of their own; keep one of them")
    return AskingPanels(panels, *asking.values()) if asking else Panels(panels)


def mode_of(panel: Any) -> Mode:
    """How samples become bytes for a panel; most do not say."""
    return getattr(panel, "mode", "round")


def under(name: str, rows: Rows) -> Rows:
    return {row.removeprefix(f"{name}/"): values for row, values in rows.items() if row.startswith(f"{name}/")}


def renamed(m: Measurement, name: str, taken: dict[str, str]) -> Measurement:
    owner = taken.setdefault(m.metric, name)
    return m if owner == name else replace(m, metric=f"{name}_{m.metric}")
