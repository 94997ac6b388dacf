"""Warnings of trouble that the logged scalars foretell: one console line when it begins, and a 0/1 flag per log entry.

The last WINDOW logged values y_1 ... y_n of each scalar, one every log_every_n_steps, are examined:

    oscillation      of a LOSSES scalar. With r the residuals of y from its least-squares line, either
                         r changes sign at 0.9 of the entries or more (noise: 0.5), or
                         var(second half of r) > 10 var(first half) and r changes sign at 0.3 of the entries or more
    gradient_spike   a gradient norm above 10 times the median of the entries before it, or not finite
    drift            of the samples from the START, the first entry after warm-up, and from the data's std:
                         |sample_mean - start's mean| > 0.5 max(start's std, data's std), or sample_std outside
                         0.5 min(start's std, data's std) to 1.5 max(start's std, data's std)

Sign changes of fgm_loss itself mean nothing, since it lies near zero by construction; those of r do. Waves of more than six
entries count as a trend. A generator that starts from a posterior mean has less than the data's std and should gain it; one
that starts from random weights should drift.

THRESHOLDS are the healthy ranges of measurements, and what to try outside of them.

The callback draws no random numbers: training is bit-equal without it. Its memory is in the checkpoint, so a resumed run
warns as an undisturbed one does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console

from fgm.training.module import TrainingModule
from fgm.utils.records import Measurement

WINDOW, MIN_BEFORE = 20, 5  # entries that are examined; fewest before a gradient norm is judged
SWINGS, GROWTH, WAVES = 0.9, 10.0, 0.3
SPIKE = 10.0
DRIFT = 0.5
MOMENTS = ("sample_mean", "sample_std")
LOSSES = ("mismatch", "fgm_loss", "online_loss", "loss")
REMEDIES = {
    "oscillation": "raise method.online_steps to 5, set Adam's beta_1 to 0, or lower optimizer.lr",
    "gradient_spike": "lower optimizer.lr or training.gradient_clip_val, raise training.warmup_steps, or keep t away from 0 and 1",
    "drift": "raise method.online_steps or lower optimizer.lr, lower the teacher's guidance, check the teacher's time "
    "and scale conventions; expected where the generator starts from random weights",
}


def residuals(y: Sequence[float]) -> list[float]:
    """Return the distances of y from its least-squares line over 0, 1, ..., n - 1."""
    middle, mean = (len(y) - 1) / 2, fmean(y)
    slope = sum((i - middle) * v for i, v in enumerate(y)) / sum((i - middle) ** 2 for i in range(len(y)))
    return [v - mean - slope * (i - middle) for i, v in enumerate(y)]


def oscillates(y: Sequence[float]) -> bool:
    """Return whether a full window alternates, or swings in growing waves."""
    if len(y) < WINDOW or not all(map(math.isfinite, y)):
        return False
    r = residuals(y)
    if max(map(abs, r)) <= 1e-9 * max(map(abs, y)):
        return False
    changes = fmean([a * b < 0 for a, b in pairwise(r)])
    first, second = (fmean([v * v for v in half]) for half in (r[: WINDOW // 2], r[WINDOW // 2 :]))
    return changes >= SWINGS or (changes >= WAVES and second > GROWTH * first)


def spikes(y: Sequence[float]) -> bool:
    """Return whether the last entry is an outlier."""
    before = [v for v in y[:-1] if math.isfinite(v)]
    return not math.isfinite(y[-1]) or (len(before) >= MIN_BEFORE and y[-1] > SPIKE * median(before))


def drifts(mean: float, std: float, start: Sequence[float], data_std: float) -> bool:
    """Return whether samples of this mean and std have left start = (mean, std) and data_std."""
    least, most = sorted((start[1], data_std))
    return not (abs(mean - start[0]) <= DRIFT * most and (1 - DRIFT) * least <= std <= (1 + DRIFT) * most)


class Diagnostics(Callback):
    """Watch the scalars that the module logs.

    Args:
        console: where the warnings go.

    Attributes:
        window: last entries of each scalar.
        start: sample_mean and sample_std after warm-up.
        warned: signs that hold now.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.window: dict[str, list[float]] = {}
        self.start: list[float] = []
        self.warned: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"window": self.window, "start": self.start, "warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.window, self.start, self.warned = (state_dict[key] for key in ("window", "start", "warned"))

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        if pl_module.logs_now:
            step, warmup = int(pl_module.step), pl_module.config.warmup_steps
            scalars = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" not in name}
            data_std = pl_module.data.std if "sample_std" in scalars else math.nan
            signs = self.watch(scalars, step > warmup, data_std)
            found = {f"warning/{sign}": float(bool(cause)) for sign, cause in signs.items()}
            pl_module.log_dict(found, logger=False)  # MetricLogger hands it to the loggers
            self.warn(signs, step, trainer.is_global_zero)

    def watch(self, scalars: dict[str, float], warm: bool, data_std: float) -> dict[str, str]:
        """Return each sign that these scalars can show, with the scalars that show it now or an empty text."""
        for name, value in scalars.items():
            self.window[name] = [*self.window.get(name, []), value][-WINDOW:]
        if warm and not self.start and "sample_std" in scalars:
            self.start = [scalars[name] for name in MOMENTS]
        norms = [name for name in scalars if name.endswith("grad_norm")]
        signs = {
            "oscillation": [name for name in LOSSES if name in scalars and oscillates(self.window[name])],
            "gradient_spike": [name for name in norms if spikes(self.window[name])],
        }
        if "sample_std" in scalars:
            moved = bool(self.start) and drifts(scalars["sample_mean"], scalars["sample_std"], self.start, data_std)
            signs["drift"] = [*MOMENTS] if moved else []
        return {sign: " and ".join(f"{name} {scalars[name]:.4g}" for name in names) for sign, names in signs.items()}

    def warn(self, signs: dict[str, str], step: int, speak: bool) -> None:
        """Print one line for each sign that has just begun."""
        for sign, cause in signs.items():
            if cause and sign not in self.warned and speak:
                self.console.print(f"warning at step {step}: {sign.replace('_', ' ')}, {cause}: {REMEDIES[sign]}")
        self.warned = [sign for sign, cause in signs.items() if cause]


@dataclass(frozen=True)
class Threshold:
    """The healthy range [low, high], and for values outside the likely cause and remedy."""

    low: float
    high: float
    below: str = ""
    above: str = ""


COLLAPSE = "mode collapse; start from the teacher, lower its guidance, or raise method.online_steps"
THRESHOLDS = {
    "class_tv": Threshold(0.0, 0.08, above=COLLAPSE),
    "diversity": Threshold(0.75, 1.33, COLLAPSE, "samples off the data; train on, or average for longer"),
    "power_high": Threshold(
        0.67,
        1.5,
        "missing detail; train on, lower method.t_star or weigh small t more",
        "grain or checkerboard; train on",
    ),
}


def warnings_of(measured: Sequence[Measurement]) -> list[str]:
    """Return a line for each metric whose first value is outside its healthy range."""
    lines, seen = [], set()
    for m in measured:
        if m.metric in THRESHOLDS and m.metric not in seen:
            seen.add(m.metric)
            healthy = THRESHOLDS[m.metric]
            advice = healthy.below if m.value < healthy.low else healthy.above if m.value > healthy.high else ""
            if advice:
                lines.append(f"{m.metric} {m.value:.3g} is outside {healthy.low:g} to {healthy.high:g}: {advice}")
    return lines
