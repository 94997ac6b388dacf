"""What a training cycle costs beside the passes through its networks, in one run of Lightning's trainer.

    cycle    ours: trainer, callbacks, log, average, clip, guard, schedules, noise from streams
    quiet    ours without callbacks, log and average
    bare     the same passes and optimizer steps in a plain loop, see plain_loops.py
    naive    a fresh sample for each turn, and weight gradients where nothing is stepped

    cycle_over_bare, cycle_over_naive, cycle_over_quiet
    overhead         share of a cycle's seconds that the host spends on average, log and callbacks, by its own clock:
                     what cycle_over_quiet says in blocks, without their noise
    sample_speedup   seconds of the teacher's ODE over seconds of the generator, for one batch
    images_per_s     batch_size over the seconds of a cycle
    mfu              FLOPs of a plain cycle a second over the device's peak, where that is known, see device.py
    peak_memory_gib  of our cycles, CUDA alone

The trainer asks for one batch before each cycle; between two blocks of its cycles the other arms run, so that all take
turns on one machine. Its log has an entry at least once a block. Networks are untrained: what they cost does not
depend on their weights.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback

from fgm.cli.benchmarks.device import finished, flops_of, peak, peak_memory
from fgm.cli.benchmarks.plain_loops import PlainLoops
from fgm.cli.benchmarks.timing import Times, interleaved, order, ratios
from fgm.training.distillation import Distillation
from fgm.training.ema import brought
from fgm.training.evaluation import Evaluate
from fgm.training.fit import Run, train
from fgm.training.logs import Lines, Record
from fgm.training.warning_signs import WarningSigns
from fgm.utils.records import Measurement

OURS = ("cycle", "quiet")
RATIOS = {f"cycle_over_{arm}": ("cycle", arm) for arm in ("bare", "naive", "quiet")}


@dataclass
class CycleBench:
    """Every arm's block of `cycles` cycles, in turn; what is passed to the trainer in place of a data loader.

    Attributes:
        module: the distillation.
        run: of a directory that nobody keeps.
        cycles: of a block.
        repetitions: of every arm, after one that is not timed.
        clock: of wall, or cpu, the process's own time.
        alone: leave the plain loops out, whose memory the device may lack.
    """

    module: Distillation
    run: Run
    cycles: int
    repetitions: int
    alone: bool = False
    clock: str = "wall"
    times: Times = field(default_factory=dict)
    watch: "Watch" = field(default_factory=lambda: Watch())
    peaks: list[float] = field(default_factory=list)

    @property
    def loops(self) -> PlainLoops:
        module: Any = self.module
        return PlainLoops(module, module.trainer.optimizers, module.schedule.batch_size)

    def __len__(self) -> int:
        return 2 * self.cycles * (self.repetitions + 1) + 1

    def __iter__(self) -> Iterator[int]:
        """A number for every cycle of ours; the last one's end closes the last block."""
        loops, device = self.loops, self.module.device
        now = time.perf_counter if self.clock == "wall" else time.process_time
        plain: dict[str, Callable[[], None]] = {} if self.alone else {"bare": loops.bare, "naive": loops.naive}
        for name, timed in order([*OURS, *plain], self.repetitions):
            finished(device)
            began, before = now(), self.watch.seconds
            if name in plain:
                self.block(plain[name])
            else:
                yield from self.own_block(quiet=name == "quiet")
            finished(device)
            if timed and name == "cycle":
                self.watch.timed.append(self.watch.seconds - before)
            if timed:
                self.times.setdefault(name, []).append(now() - began)
        yield 0

    def own_block(self, quiet: bool) -> Iterator[int]:
        with silenced(self.module) if quiet else peak_memory(self.module.device, self.peaks):
            finish = self.module.finish
            if not quiet:
                self.module.finish = self.watch.around(finish)  # type: ignore[method-assign]
            yield from range(self.cycles)
            self.module.finish = finish  # type: ignore[method-assign]

    def block(self, cycle: Callable[[], None]) -> None:
        with self.module.trainer.precision_plugin.train_step_context():
            for _ in range(self.cycles):
                cycle()

    def measure(self, told: str) -> list[Measurement]:
        """Run it; told says what the networks are."""
        run, watch = self.run, self.watch
        watched = [Evaluate(run.measuring), WarningSigns(run.console), Record(), Lines(run.console)]
        train(self.module, run, self, [watch.first, *watched, watch.last])
        batch = self.module.schedule.batch_size
        blocks = f"median of {self.repetitions} blocks of {self.cycles} cycles of {batch}, {self.clock} time"
        protocol = f"{told}, {run.hardware.precision}; {blocks}"
        shared = {"n": self.cycles * batch, "protocol": protocol, "nfe": self.module.generator.nfe, "weights": "raw"}
        rates = [Measurement(name, value, **shared) for name, value in self.rates().items()]
        return [*ratios(self.times, RATIOS, **shared), *rates, *self.speedup(told)]

    def rates(self) -> dict[str, float]:
        """images_per_s, tflop_per_image, and mfu and peak_memory_gib where they are known."""
        module: Any = self.module
        loops = PlainLoops(module, module.trainer.optimizers, 1)
        images_per_s = module.schedule.batch_size * self.cycles / median(self.times["cycle"])
        objective = module.objective  # in two stages something is computed twice
        module.objective = replace(objective, two_stage=False)
        flops = flops_of(loops.bare, module.generator, module.online, module.teacher)
        module.objective = objective
        rates = {"images_per_s": images_per_s, "tflop_per_image": flops / 1e12}
        rates |= {"overhead": sum(self.watch.timed) / sum(self.times["cycle"])}
        most = peak(module.device, self.run.hardware.precision)
        rates |= {"mfu": images_per_s * flops / most} if most else {}
        return rates | ({"peak_memory_gib": max(self.peaks)} if self.peaks else {})

    def speedup(self, told: str) -> list[Measurement]:
        """The generator against the teacher's ODE, as the run would show them."""
        module, (one, *_, many) = self.module, self.module.sources()
        n, noise = module.schedule.batch_size, module.noise("bench", 0)
        z = torch.randn((n, *module.setting.data.shape), generator=noise, device=module.device)
        condition = module.setting.data.conditions(n, noise)

        @torch.no_grad()
        def draw(sampler: Any) -> None:
            with module.trainer.precision_plugin.forward_context():
                sampler(z, condition)
            finished(module.device)

        with brought(module.ema, module.device):
            times = interleaved({s.name: partial(draw, s.sampler) for s in (one, many)}, self.repetitions)
        protocol = f"{told}; a batch of {n}, against {many.name}, {many.nfe} network calls"
        arms = {"sample_speedup": (many.name, one.name)}
        return ratios(times, arms, n=n, protocol=protocol, nfe=one.nfe, weights="ema")


class Watch:
    """Seconds of the host beside the turns of its cycles.

    Attributes:
        first, last: callbacks, between which all others stand.
        timed: seconds of every timed block.
    """

    def __init__(self) -> None:
        self.seconds, self.began, self.timed = 0.0, 0.0, list[float]()
        self.first, self.last = Told(self.start), Told(self.stop)

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.began

    def around(self, finish: Callable[[Any], None]) -> Callable[[Any], None]:
        def watched(scalars: Any) -> None:
            self.start()
            finish(scalars)
            self.stop()

        return watched


class Told(Callback):
    """Calls something at the end of each cycle."""

    def __init__(self, what: Callable[[], None]) -> None:
        self.what = what

    def on_train_batch_end(self, *_: Any) -> None:
        self.what()


@contextmanager
def silenced(module: Distillation) -> Iterator[None]:
    """Its cycles without callbacks, average and log."""
    trainer: Any = module.trainer
    callbacks, finish = trainer.callbacks, module.finish
    trainer.callbacks, module.finish = [], lambda scalars: module.cycle.add_(1)  # type: ignore[method-assign]
    yield
    trainer.callbacks, module.finish = callbacks, finish  # type: ignore[method-assign]
