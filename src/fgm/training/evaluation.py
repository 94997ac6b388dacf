"""Looking and measuring during training and at its end, by the calls that `make eval` makes."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from fgm.data import Data
from fgm.data.pixels import dequantise
from fgm.evaluation import PromptMetric
from fgm.evaluation.diagnostics import complaints
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.pictures import captioned_grid, gallery, picture
from fgm.evaluation.sampling import Sampler
from fgm.evaluation.sources import Samples
from fgm.training.best import SaveBest
from fgm.training.distributed import training_ranks, unsharded
from fgm.training.ema import brought
from fgm.training.loggers import PromptSample, log_grid, log_prompt_samples
from fgm.training.module import TrainingModule
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement

SHOWN_POINTS, SHOWN_IMAGES, SHOWN_PROMPTS, DRAWN = 4000, 15, 12, 16


@dataclass(frozen=True)
class Measuring:
    """An evaluation of the samplers of one run.

    Attributes:
        run_dir: shards lie in its evaluation/.
        config_digest: of the run, which with the weights defines a sampler.
        console: for progress.
    """

    evaluation: Evaluator
    run_dir: Path
    config_digest: str
    console: Console

    def source(self, sampler: Sampler, module: TrainingModule, n: int, **identity: Any) -> Any:
        data, device = module.data, module.device
        return self.evaluation.source(sampler, data, device, n, config_digest=self.config_digest, **identity)

    def measure(self, sampler: Sampler, module: TrainingModule, n: int, keep: bool = True) -> list[Measurement]:
        """Shards that are not kept are deleted once they are judged; their key is the cycle, not the weights."""
        ranks = training_ranks()
        when = {} if keep else {"cycle": int(module.step), "world": ranks.world_size}
        source = self.source(sampler, module, n, **when)
        with unsharded(sampler.sampler):
            plan, _ = self.evaluation.plan(source, self.run_dir)
            measured = self.evaluation.measure(source, plan, ranks, self.console if self.console.is_terminal else None)
        if not keep and ranks.rank == 0:
            shutil.rmtree(plan.directory)
        return measured

    def show(self, samplers: Sequence[Sampler], module: TrainingModule, path: Path) -> None:
        """One row or plot per sampler, all from the same noise, and the truth last; captions where there are some.

        Written by the first rank; all must ask, as in taken.
        """
        suite, data = self.evaluation.suite, module.data
        n = SHOWN_PROMPTS if isinstance(suite, PromptMetric) else shown(data)
        found = {s.name: self.taken(s, module, n) for s in samplers}
        sets = {name: dequantise(samples.x) for name, samples in found.items() if samples}
        if not sets:
            return
        if isinstance(suite, PromptMetric):
            asked = suite.prompt_ids(torch.arange(n))
            truth = suite.ground_truth(asked)
            captioned_grid(sets | ({} if truth is None else {"real": truth}), suite.prompts(asked), path)
        else:
            picture(sets | {"real": data.reference(n, keyed_generator("shown", index=0))}, path, SHOWN_IMAGES)

    def taken(self, sampler: Sampler, module: TrainingModule, n: int) -> Samples | None:
        """Samples 0 to n - 1, on the first rank. Networks may be in shards, which takes every rank to put together."""
        with unsharded(sampler.sampler):
            return None if module.global_rank else self.source(sampler, module, n).take(range(n))

    def draw(self, sampler: Sampler, module: TrainingModule, path: Path) -> None:
        """A few samples of one sampler and nothing else."""
        samples = self.taken(sampler, module, max(DRAWN, shown(module.data)))
        if samples is not None:
            gallery(dequantise(samples.x), path)

    def answers(self, sampler: Sampler, module: TrainingModule) -> list[PromptSample]:
        """The first prompts and what the sampler makes of them, as taken; none where the suite does not judge."""
        suite = self.evaluation.suite
        if not isinstance(suite, PromptMetric):
            return []
        samples = self.taken(sampler, module, SHOWN_PROMPTS)
        if samples is None or samples.labels is None:
            return []
        prompts, verdicts = suite.prompts(samples.labels), suite.grades(samples.x, samples.labels)
        images = samples.x.permute(0, 2, 3, 1).numpy()
        return [PromptSample(p, *v, x) for p, v, x in zip(prompts, verdicts, images, strict=bool(verdicts))]


def shown(data: Data) -> int:
    return SHOWN_POINTS if len(data.shape) == 1 else SHOWN_IMAGES


class Evaluate(Callback):
    """Measures the module's first sampler every so many cycles, and saves a picture of all of them."""

    def __init__(self, measuring: Measuring) -> None:
        self.measuring, evaluation = measuring, measuring.evaluation
        self.best = SaveBest(evaluation.monitor, evaluation.mode, measuring.run_dir) if evaluation.monitor else None
        self.seconds = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = state_dict["seconds"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        cycle, every = int(pl_module.step), self.measuring.evaluation.every
        if every and cycle % every == 0:
            began = time.perf_counter()
            with brought(pl_module.ema, pl_module.device):
                self.measure(pl_module, cycle)
            self.seconds += time.perf_counter() - began

    def measure(self, module: TrainingModule, cycle: int) -> None:
        sampler, n, console = module.samplers()[0], self.measuring.evaluation.n_in_training, self.measuring.console
        measured = self.measuring.measure(sampler, module, n, keep=False)
        for logger in module.loggers:
            logger.log_metrics({f"eval/{m.metric}": m.value for m in measured}, step=cycle - 1)
        console.print(f"cycle {cycle}: {sampler.name}, n = {n}: {told(measured)}")
        for line in complaints(measured):
            console.print(f"warning at cycle {cycle}: {line}")
        if self.best:
            self.best(module, cycle, measured)
        self.show(module, cycle)

    def show(self, module: TrainingModule, cycle: int) -> None:
        path = self.measuring.run_dir / "samples" / f"{cycle:06d}.png"
        self.measuring.show(module.samplers(), module, path)
        answers = self.measuring.answers(module.samplers()[0], module)
        if module.global_rank:
            return
        log_grid(module.loggers, path, cycle - 1)
        if answers:
            log_prompt_samples(module.loggers, answers, cycle - 1)


def final_measurements(measuring: Measuring, module: TrainingModule, known: list[Measurement]) -> list[Measurement]:
    """Every sampler of the module at full n, then floor and ceiling; samplers in `known` are not measured again."""
    results, n = [], measuring.evaluation.n
    for sampler in module.samplers():
        began = time.perf_counter()
        measured = [m for m in known if sampler.nfe > 1 and (m.nfe, m.weights) == (sampler.nfe, sampler.weights)]
        measured = measured or measuring.measure(sampler, module, n)
        measuring.console.print(f"{sampler.name}, n = {n}: {told(measured)}  ({time.perf_counter() - began:.0f} s)")
        results += measured
    return results + measuring.evaluation.suite.reference_values()


def told(measured: Sequence[Measurement]) -> str:
    return "  ".join(f"{m.metric} {m.value:.4g}" for m in measured)
