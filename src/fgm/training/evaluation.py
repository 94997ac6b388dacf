"""Looking and measuring: the same calls during training, at its end, and from `make eval`."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import Tensor

from fgm.data import Data
from fgm.errors import Refusal
from fgm.evaluation import Asking, Judging, Panel
from fgm.evaluation.panel import FeaturePanel
from fgm.evaluation.pictures import captioned_grid, picture
from fgm.evaluation.quantise import quantise
from fgm.evaluation.sampling import Source, decoded, draw_samples
from fgm.evaluation.symptoms import complaints
from fgm.records import Measurement
from fgm.streams import stream
from fgm.training.checkpoints import Mode, SaveBest
from fgm.training.dashboard import Answer, log_answers, log_picture
from fgm.training.method import Method

SHOWN_POINTS, SHOWN_IMAGES, SHOWN_PROMPTS = 4000, 15, 12


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
        best: metric whose best value's weights are kept, see SaveBest; +evaluation.best=fd.
        best_mode: whether less or more of it is better.

    Raises:
        Refusal: the best of no measurements is asked for, or n is too small for the panel's features.
    """

    panel: Panel
    n: Annotated[int, "[1, inf)"] = 10_000
    every: Annotated[int, "[0, inf)"] = 100
    n_training: Annotated[int, "[1, inf)"] = 2000
    seed: int = 1234
    batch: Annotated[int, "[1, inf)"] = 1000
    best: str | None = None
    best_mode: Mode = "min"

    def __post_init__(self) -> None:
        if self.best and not self.every:
            raise Refusal(f"evaluation.best = {self.best} needs measurements in training: give evaluation.every")
        if isinstance(self.panel, FeaturePanel):
            self.panel.require(min(self.n, self.n_training) if self.every else self.n)

    def draw(self, source: Source, data: Data, device: Any, n: int, batch: int = 1000) -> tuple[Tensor, Tensor | None]:
        """Samples 0 to n - 1 and their conditions: the panel's, where it asks for something, or balanced labels."""
        asked = self.panel.conditions if isinstance(self.panel, Asking) else None
        seen = decoded(source, data)
        return draw_samples(seen, self.seed, n, data.shape, data.num_classes, device, batch, asked)

    def measure(self, source: Source, data: Data, device: Any, n: int) -> list[Measurement]:
        samples = self.draw(source, data, device, n, self.batch)
        return [replace(m, nfe=source.nfe, weights=source.weights) for m in self.panel.measure(*samples)]

    def show(self, sources: list[Source], data: Data, device: Any, path: Path) -> None:
        """One row or panel per source, all from the same noise, and the truth last; captions where there are some."""
        if isinstance(self.panel, Asking):
            shown = torch.arange(SHOWN_PROMPTS)
            sets = {s.name: self.draw(s, data, device, SHOWN_PROMPTS, self.batch)[0] for s in sources}
            truth = {"real": self.panel.truth(shown)} if isinstance(self.panel, Judging) else {}
            captioned_grid(sets | truth, self.panel.captions(shown), path)
            return
        n = SHOWN_POINTS if len(data.shape) == 1 else SHOWN_IMAGES
        sets = {s.name: self.draw(s, data, device, n)[0] for s in sources}
        picture(sets | {"real": data.reference(n, stream("shown", index=0))}, path, SHOWN_IMAGES)

    def answers(self, source: Source, data: Data, device: Any) -> list[Answer]:
        """The first prompts and what the source makes of them; none where the panel does not judge."""
        if not isinstance(self.panel, Judging):
            return []
        x_0, _ = self.draw(source, data, device, SHOWN_PROMPTS, self.batch)
        prompts, verdicts = self.panel.captions(torch.arange(SHOWN_PROMPTS)), self.panel.verdicts(x_0)
        pictures = quantise(x_0).permute(0, 2, 3, 1).numpy()
        return [Answer(p, *v, x) for p, v, x in zip(prompts, verdicts, pictures, strict=True)]


class Evaluate(Callback):
    """Measures the module's first source every so many cycles, and saves a picture of all of them."""

    def __init__(self, evaluation: Evaluation, run_dir: Path, console: Console) -> None:
        self.evaluation, self.run_dir, self.console = evaluation, run_dir, console
        self.best = SaveBest(evaluation.best, evaluation.best_mode, run_dir) if evaluation.best else None
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        cycle, every = int(pl_module.cycle), self.evaluation.every
        if every and cycle % every == 0:
            began = time.perf_counter()
            self.measure(pl_module, cycle)
            self.seconds += time.perf_counter() - began

    def measure(self, module: Method, cycle: int) -> None:
        data, source, n = module.setting.data, module.sources()[0], self.evaluation.n_training
        measured = self.evaluation.measure(source, data, module.device, n)
        for logger in module.loggers:
            logger.log_metrics({f"eval/{m.metric}": m.value for m in measured}, step=cycle - 1)
        shown = "  ".join(f"{m.metric} {m.value:.4g}" for m in measured)
        self.console.print(f"cycle {cycle}: {source.name}, n = {n}: {shown}")
        for line in complaints(measured):
            self.console.print(f"warning at cycle {cycle}: {line}")
        if self.best:
            self.best(module, cycle, measured)
        self.show(module, cycle)

    def show(self, module: Method, cycle: int) -> None:
        data, sources = module.setting.data, module.sources()
        path = self.run_dir / "samples" / f"{cycle:06d}.png"
        self.evaluation.show(sources, data, module.device, path)
        log_picture(module.loggers, path, cycle - 1)
        answers = self.evaluation.answers(sources[0], data, module.device)
        if answers:
            log_answers(module.loggers, answers, cycle - 1)


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
