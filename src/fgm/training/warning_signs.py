"""Trouble that the logged scalars foretell: one console line when it begins, and a 0/1 flag with every log entry.

Seen is what is logged: the last WINDOW entries y_1 ... y_n of a scalar, every training.log_every cycles.

    oscillation      of a LOSSES scalar. With r the residuals of y from its least-squares line, either
                         r changes sign at 0.9 of the steps or more (noise: 0.5), or
                         var(second half of r) > 10 var(first half) and r changes sign at 0.3 of the steps or more
    gradient_spike   a gradient norm above 10 times the median of the entries before it, or not finite
    drift            of the samples from the START, the first entry after warm-up, and from the data's std:
                         |sample_mean - start's mean| > 0.5 max(start's std, data's std), or sample_std outside
                         0.5 min(start's std, data's std) to 1.5 max(start's std, data's std)

The sign changes of fgm_loss itself mean nothing, as it lies about zero by construction; those of r do. Waves of more
than six entries pass for a trend. A generator that starts from a posterior mean has less than the data's std and is
meant to gain it; one that starts from random weights is meant to drift.

The callback reads numbers and draws none: training is bit-equal without it. Its memory is in the checkpoint, so that a
resumed run warns as the undisturbed one does.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console

from fgm.training.method import Method

WINDOW, LEAST = 20, 5  # entries that are looked at, and fewest before which a gradient is judged
SWINGS, GROWTH, WAVES = 0.9, 10.0, 0.3
SPIKE = 10.0
DRIFT = 0.5
MOMENTS = ("sample_mean", "sample_std")
LOSSES = ("mismatch", "fgm_loss", "online_loss", "loss")
REMEDIES = {
    "oscillation": "raise method.online_turns to 5, set Adam's beta_1 to 0, or lower optimizer.lr",
    "gradient_spike": "lower optimizer.lr or training.clip, raise training.warmup, or keep t away from 0 and 1",
    "drift": "raise method.online_turns or lower optimizer.lr, lower the teacher's guidance, check the teacher's time "
    "and scale conventions; expected where the generator starts from random weights",
}


def residuals(y: Sequence[float]) -> list[float]:
    """From the least-squares line over 0, 1, ..., n - 1."""
    middle, mean = (len(y) - 1) / 2, fmean(y)
    slope = sum((i - middle) * v for i, v in enumerate(y)) / sum((i - middle) ** 2 for i in range(len(y)))
    return [v - mean - slope * (i - middle) for i, v in enumerate(y)]


def oscillates(y: Sequence[float]) -> bool:
    """Whether a full window swings to and fro, or in growing waves."""
    if len(y) < WINDOW or not all(map(math.isfinite, y)):
        return False
    r = residuals(y)
    if max(map(abs, r)) <= 1e-9 * max(map(abs, y)):
        return False
    changes = fmean([a * b < 0 for a, b in pairwise(r)])
    first, second = (fmean([v * v for v in half]) for half in (r[: WINDOW // 2], r[WINDOW // 2 :]))
    return changes >= SWINGS or (changes >= WAVES and second > GROWTH * first)


def spikes(y: Sequence[float]) -> bool:
    """Whether the last entry stands out."""
    before = [v for v in y[:-1] if math.isfinite(v)]
    return not math.isfinite(y[-1]) or (len(before) >= LEAST and y[-1] > SPIKE * median(before))


def drifts(mean: float, std: float, start: Sequence[float], data_std: float) -> bool:
    """Of samples whose start is (mean, std)."""
    least, most = sorted((start[1], data_std))
    return not (abs(mean - start[0]) <= DRIFT * most and (1 - DRIFT) * least <= std <= (1 + DRIFT) * most)


class WarningSigns(Callback):
    """Watches the scalars that the module logs.

    Args:
        console: where the warnings go.

    Attributes:
        seen: last entries of each scalar.
        start: sample_mean and sample_std after warm-up.
        warned: signs that hold now.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seen: dict[str, list[float]] = {}
        self.start: list[float] = []
        self.warned: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "start": self.start, "warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen, self.start, self.warned = (state_dict[key] for key in ("seen", "start", "warned"))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        if pl_module.logs_now:
            cycle, warmup = int(pl_module.cycle), pl_module.schedule.warmup
            scalars = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" not in name}
            data_std = pl_module.setting.data.std if "sample_std" in scalars else math.nan
            signs = self.watch(scalars, cycle > warmup, data_std)
            found = {f"warning/{sign}": float(bool(cause)) for sign, cause in signs.items()}
            pl_module.log_dict(found, logger=False)  # Record writes it
            self.warn(signs, cycle, trainer.is_global_zero)

    def watch(self, scalars: dict[str, float], warm: bool, data_std: float) -> dict[str, str]:
        """Every sign that these scalars can show, with the scalars that show it now or an empty text."""
        for name, value in scalars.items():
            self.seen[name] = [*self.seen.get(name, []), value][-WINDOW:]
        if warm and not self.start and "sample_std" in scalars:
            self.start = [scalars[name] for name in MOMENTS]
        norms = [name for name in scalars if name.endswith("grad_norm")]
        signs = {
            "oscillation": [name for name in LOSSES if name in scalars and oscillates(self.seen[name])],
            "gradient_spike": [name for name in norms if spikes(self.seen[name])],
        }
        if "sample_std" in scalars:
            moved = bool(self.start) and drifts(scalars["sample_mean"], scalars["sample_std"], self.start, data_std)
            signs["drift"] = [*MOMENTS] if moved else []
        return {sign: " and ".join(f"{name} {scalars[name]:.4g}" for name in names) for sign, names in signs.items()}

    def warn(self, signs: dict[str, str], cycle: int, speak: bool) -> None:
        """One line for each sign that has just begun."""
        for sign, cause in signs.items():
            if cause and sign not in self.warned and speak:
                self.console.print(f"warning at cycle {cycle}: {sign.replace('_', ' ')}, {cause}: {REMEDIES[sign]}")
        self.warned = [sign for sign, cause in signs.items() if cause]
