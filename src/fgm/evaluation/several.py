"""Several suites as one: the same samples, judged by each. Features are kept under <suite>/<feature>."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from fgm.data.pixels import Mode
from fgm.evaluation import Features, MetricSuite, PromptMetric
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement
from fgm.utils.validation import validated


class CombinedSuite:
    """Suites by name; a metric that an earlier suite has too is called <name>_<metric>.

    Raises:
        UserError: two of them turn samples into bytes by different modes.
    """

    def __init__(self, suites: dict[str, MetricSuite]) -> None:
        self.suites = suites
        modes = {mode_of(suite) for suite in suites.values()}
        if len(modes) > 1:
            raise UserError(f"evaluation.suite.suites: quantise by {' and by '.join(sorted(modes))}; choose one")
        self.mode = modes.pop()

    def require(self, n: int) -> None:
        """Refuse an n that is too small for one of them."""
        for suite in self.suites.values():
            if isinstance(suite, FeatureMetrics):
                suite.require(n)

    def identity(self) -> dict[str, Any]:
        return {name: suite.identity() for name, suite in self.suites.items()}

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        kept = {name: suite.features(x_0, labels) for name, suite in self.suites.items()}
        return {f"{name}/{row}": values for name, features in kept.items() for row, values in features.items()}

    def compute(self, features: Features) -> list[Measurement]:
        return self.joined({name: suite.compute(under(name, features)) for name, suite in self.suites.items()})

    def reference_values(self) -> list[Measurement]:
        return self.joined({name: suite.reference_values() for name, suite in self.suites.items()})

    def joined(self, measured: dict[str, list[Measurement]]) -> list[Measurement]:
        taken: dict[str, str] = {}
        return [renamed(m, name, taken) for name, found in measured.items() for m in found]


class CombinedPromptMetric(CombinedSuite):
    """Suites of which one asks; the others are told the ids of its prompts as labels."""

    def __init__(self, suites: dict[str, MetricSuite], asking: PromptMetric) -> None:
        super().__init__(suites)
        self.prompt_ids, self.conditions, self.prompts = asking.prompt_ids, asking.conditions, asking.prompts
        self.ground_truth, self.grades = asking.ground_truth, asking.grades


@validated
def several(suites: dict[str, Any]) -> CombinedSuite:
    """
    Args:
        suites: by name.

    Raises:
        UserError: two of them ask, and a sample can answer one question alone.
    """
    asking = {name: suite for name, suite in suites.items() if isinstance(suite, PromptMetric)}
    if len(asking) > 1:
        raise UserError(f"evaluation.suite.suites: {' and '.join(asking)} have prompts of their own; keep one of them")
    return CombinedPromptMetric(suites, *asking.values()) if asking else CombinedSuite(suites)


def mode_of(suite: Any) -> Mode:
    """How samples become bytes for a suite; most do not say."""
    return getattr(suite, "mode", "round")


def under(name: str, features: Features) -> Features:
    return {row.removeprefix(f"{name}/"): values for row, values in features.items() if row.startswith(f"{name}/")}


def renamed(m: Measurement, name: str, taken: dict[str, str]) -> Measurement:
    owner = taken.setdefault(m.metric, name)
    return m if owner == name else replace(m, metric=f"{name}_{m.metric}")
