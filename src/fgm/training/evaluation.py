"""Measurements and pictures during training and at its end, by the calls that `make eval` makes."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from rich.console import Console
from safetensors.torch import save_file

from fgm.data.pixels import dequantise
from fgm.evaluation import PromptMetric
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.plots import save_rows, save_square
from fgm.evaluation.sampling import Sampler
from fgm.evaluation.sources import SamplerSource, Samples
from fgm.training.checkpointing import exported_state
from fgm.training.diagnostics import warnings_of
from fgm.training.distributed import training_ranks, unsharded
from fgm.training.ema import brought
from fgm.training.loggers import PromptSample, log_grid, log_prompt_samples
from fgm.training.module import TrainingModule
from fgm.utils.distributed import on_rank_zero
from fgm.utils.errors import UserError
from fgm.utils.files import replacing
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement, write_json

SHOWN_POINTS, SHOWN_IMAGES, SHOWN_PROMPTS, MIN_DRAWN = 4000, 15, 12, 16
BEST = Path("checkpoints") / "best.safetensors"


class EvaluationCallback(Callback):
    """Measure the module's first sampler every `evaluator.every` steps, and save a picture of all samplers.

    Values are logged as eval/<metric>, and each evaluation counts as a validation for stock callbacks:

        ModelCheckpoint(monitor="eval/fd", save_on_train_epoch_end=False)
        EarlyStopping(monitor="eval/fd", check_on_train_epoch_end=False)

    With `evaluator.monitor` the averaged weights of its best value are kept in <run_dir>/checkpoints/best.safetensors,
    and value, n, protocol, step and mode in best.json; a resumed run compares with them if they are of the same metric,
    n, protocol and mode. The best of many measurements is biased: measure those weights again with another seed.

    Args:
        evaluator: what to measure.
        run_dir: of the run.
        config_digest: of the run, to identify its samplers.
        console: for values and progress.
    """

    def __init__(self, evaluator: Evaluator, run_dir: Path, config_digest: str, console: Console) -> None:
        self.evaluator, self.run_dir, self.config_digest, self.console = evaluator, run_dir, config_digest, console
        self.seconds = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = state_dict["seconds"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        step, every = int(pl_module.step), self.evaluator.every
        if not every or step % every:
            return
        began = time.perf_counter()
        with brought(pl_module.averages.values(), pl_module.device):
            sampler, n = pl_module.samplers()[0], self.evaluator.n_in_training
            measured = self.measure(sampler, pl_module, n)
            self.console.print(f"step {step}: {sampler.name}, n = {n}: {values_of(measured)}")
            for line in warnings_of(measured):
                self.console.print(f"warning at step {step}: {line}")
            values = {f"eval/{m.metric}": m.value for m in measured}
            pl_module.log_dict(values, logger=False)
            for logger in pl_module.loggers:
                logger.log_metrics(values, step=step - 1)
            self.keep_best(pl_module, measured, step)
            path = self.run_dir / "samples" / f"{step:06d}.png"
            shown = self.show(pl_module.samplers(), pl_module, path)
        if shown:
            log_grid(pl_module.loggers, path, step - 1)
            log_prompt_samples(pl_module.loggers, self.graded(shown), step - 1)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint | EarlyStopping):
                callback.on_validation_end(trainer, pl_module)
        self.seconds += time.perf_counter() - began

    def measure_all(self, module: TrainingModule, known: Sequence[Measurement] = ()) -> list[Measurement]:
        """Measure every sampler at full n, and the reference values; many-step samplers in `known` are not repeated."""
        results, n = [], self.evaluator.n
        for sampler in module.samplers():
            began = time.perf_counter()
            measured = [m for m in known if sampler.nfe > 1 and (m.nfe, m.weights) == (sampler.nfe, sampler.weights)]
            measured = measured or self.measure(sampler, module, n)
            seconds = time.perf_counter() - began
            self.console.print(f"{sampler.name}, n = {n}: {values_of(measured)}  ({seconds:.0f} s)")
            results += measured
        return results + self.evaluator.suite.reference_values()

    def measure(self, sampler: Sampler, module: TrainingModule, n: int) -> list[Measurement]:
        """Measure samples 0 to n - 1 of a sampler, on every rank."""
        console = self.console if self.console.is_terminal else None
        with unsharded(sampler.model):
            return self.evaluator.measure(self.source(sampler, module, n), training_ranks(), console)

    def source(self, sampler: Sampler, module: TrainingModule, n: int) -> SamplerSource:
        return self.evaluator.source(sampler, module.data, module.device, n, config_digest=self.config_digest)

    def first_samples(self, sampler: Sampler, module: TrainingModule, n: int) -> Samples | None:
        """Draw samples 0 to n - 1 on rank 0; every rank must call it, because networks may be sharded."""
        with unsharded(sampler.model):
            return None if module.global_rank else self.source(sampler, module, n).take(range(n))

    def show(self, samplers: Sequence[Sampler], module: TrainingModule, path: Path) -> Samples | None:
        """Save a row or plot for each sampler, all from the same noise, and one of real samples if there are any.

        Returns:
            The first sampler's samples on rank 0, which writes the picture; every rank must call it.
        """
        suite, n = self.evaluator.suite, SHOWN_POINTS if len(module.data.shape) == 1 else SHOWN_IMAGES
        captions, real = None, None
        if isinstance(suite, PromptMetric):
            n = SHOWN_PROMPTS
            prompt_ids = suite.prompt_ids(torch.arange(n))
            captions, real = suite.prompts(prompt_ids), suite.ground_truth(prompt_ids)
        drawn = [(sampler.name, self.first_samples(sampler, module, n)) for sampler in samplers]
        if module.global_rank:
            return None
        if captions is None:
            real = module.data.reference(n, keyed_generator("shown", index=0))
        rows = {name: dequantise(samples.x) for name, samples in drawn if samples}
        save_rows(rows | ({} if real is None else {"real": real}), path, captions, SHOWN_IMAGES)
        return drawn[0][1]

    def draw(self, sampler: Sampler, module: TrainingModule, path: Path) -> None:
        """Save a square of one sampler's first samples."""
        n = SHOWN_POINTS if len(module.data.shape) == 1 else MIN_DRAWN
        samples = self.first_samples(sampler, module, n)
        if samples:
            save_square(dequantise(samples.x), path)

    def graded(self, samples: Samples) -> list[PromptSample]:
        """Return the samples with their prompts and grades; none if the suite does not grade."""
        suite = self.evaluator.suite
        if not isinstance(suite, PromptMetric) or samples.labels is None:
            return []
        prompts, grades = suite.prompts(samples.labels), suite.grades(samples.x, samples.labels)
        images = samples.x.permute(0, 2, 3, 1).numpy() if grades else ()
        return [PromptSample(p, *grade, x) for p, grade, x in zip(prompts, grades, images, strict=bool(grades))]

    def keep_best(self, module: TrainingModule, measured: Sequence[Measurement], step: int) -> None:
        """Save the averaged weights if the monitored metric has improved.

        Raises:
            UserError: the suite does not measure that metric.
        """
        monitor, mode, path = self.evaluator.monitor, self.evaluator.mode, self.run_dir / BEST
        if not monitor:
            return
        by_name = {m.metric: m for m in reversed(measured)}
        if monitor not in by_name:
            raise UserError(f"evaluation.monitor = {monitor} is not measured here; there are {', '.join(by_name)}")
        m = by_name[monitor]
        row = {"metric": m.metric, "mode": mode, "n": m.n, "protocol": m.protocol, "value": m.value, "step": step}

        def improves() -> bool:
            record = path.with_suffix(".json")
            best = json.loads(record.read_text()) if record.exists() and path.exists() else {}
            if any(best.get(key) != row[key] for key in ("metric", "mode", "n", "protocol")):
                return True
            return m.value < best["value"] if mode == "min" else m.value > best["value"]

        if not math.isfinite(m.value) or not on_rank_zero(training_ranks(), improves):
            return
        state = exported_state(module)
        if module.global_rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                save_file(state, temporary)
            write_json(path.with_suffix(".json"), row)  # last: a record never describes missing weights


def values_of(measured: Sequence[Measurement]) -> str:
    return "  ".join(f"{m.metric} {m.value:.4g}" for m in measured)
