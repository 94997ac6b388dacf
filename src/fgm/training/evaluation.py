"""Looking and measuring: the same calls during training, at its end, and from `make eval`."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console

from fgm.data import Data
from fgm.evaluation import Panel
from fgm.evaluation.panel import FeaturePanel
from fgm.evaluation.pictures import picture
from fgm.evaluation.sampling import Source, draw_samples
from fgm.records import Measurement
from fgm.streams import stream
from fgm.training.method import Method

SHOWN_POINTS, SHOWN_IMAGES = 4000, 15


@dataclass(frozen=True)
class Evaluation:
    """What to measure, how often and on how many samples.

    Args:
        panel: the metrics.
        n: samples at the end.
        every: cycles between measurements in training; 0 for none.
        n_training: samples of such a measurement.
        seed: of the samples; the same at every measurement, so that curves show the training alone.
        batch: samples at once.
    """

    panel: Panel
    n: Annotated[int, "[1, inf)"] = 10_000
    every: Annotated[int, "[0, inf)"] = 100
    n_training: Annotated[int, "[1, inf)"] = 2000
    seed: int = 1234
    batch: Annotated[int, "[1, inf)"] = 1000

    def __post_init__(self) -> None:
        """Refuse what a panel of features could not measure later, before anything is trained."""
        if isinstance(self.panel, FeaturePanel):
            self.panel.require(min(self.n, self.n_training) if self.every else self.n)

    def measure(self, source: Source, data: Data, device: Any, n: int) -> list[Measurement]:
        samples = draw_samples(source, self.seed, n, data.shape, data.num_classes, device, self.batch)
        return [replace(m, nfe=source.nfe, weights=source.weights) for m in self.panel.measure(*samples)]

    def show(self, sources: list[Source], data: Data, device: Any, path: Path) -> None:
        """One row or panel per source, all from the same noise, and the truth last."""
        n = SHOWN_POINTS if len(data.shape) == 1 else SHOWN_IMAGES
        sets = {s.name: draw_samples(s, self.seed, n, data.shape, data.num_classes, device)[0] for s in sources}
        picture(sets | {"real": data.reference(n, stream("shown", index=0))}, path, SHOWN_IMAGES)


class Evaluate(Callback):
    """Measures the module's first source every so many cycles, and saves a picture of all of them."""

    def __init__(self, evaluation: Evaluation, run_dir: Path, console: Console) -> None:
        self.evaluation, self.run_dir, self.console = evaluation, run_dir, console
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        cycle, every = int(pl_module.cycle), self.evaluation.every
        if every and cycle % every == 0:
            began = time.perf_counter()
            self.measure(pl_module, cycle)
            self.seconds += time.perf_counter() - began

    def measure(self, module: Method, cycle: int) -> None:
        data, sources = module.setting.data, module.sources()
        measured = self.evaluation.measure(sources[0], data, module.device, self.evaluation.n_training)
        scalars = {f"eval/{m.metric}": m.value for m in measured}
        for logger in module.loggers:
            logger.log_metrics(scalars, step=cycle - 1)
        shown = "  ".join(f"{m.metric} {m.value:.4g}" for m in measured)
        self.console.print(f"cycle {cycle}: {sources[0].name}, n = {self.evaluation.n_training}: {shown}")
        self.evaluation.show(sources, data, module.device, self.run_dir / "samples" / f"{cycle:06d}.png")


def final_measurements(
    evaluation: Evaluation, module: Method, console: Console, known: list[Measurement]
) -> list[Measurement]:
    """Every source of the module at full n, then floor and ceiling; sources in `known` are not measured again."""
    results = []
    for source in module.sources():
        began = time.perf_counter()
        measured = [m for m in known if source.nfe > 1 and (m.nfe, m.weights) == (source.nfe, source.weights)]
        measured = measured or evaluation.measure(source, module.setting.data, module.device, evaluation.n)
        shown = "  ".join(f"{m.metric} {m.value:.4g}" for m in measured)
        console.print(f"{source.name}, n = {evaluation.n}: {shown}  ({time.perf_counter() - began:.0f} s)")
        results += measured
    return results + evaluation.panel.bounds()
