"""Time a training cycle against plain loops that do the same work:
python -m benchmarks.cycle [experiment=digits_fgm] [key=value ...]

    cycle    ours: trainer, callbacks, log, average, clip, guard, schedules, keyed noise
    bare     the forward and backward passes and both optimizers' steps in a plain loop, and nothing else
    naive    as a first implementation has it: a fresh sample for each update, and weight gradients of teacher and online
             network in the generator's update, where nothing steps them

    cycle_over_bare, cycle_over_naive
    sample_speedup   seconds of the teacher's ODE over seconds of the generator, for one batch
    images_per_s     batch_size over the seconds of a cycle
    tflop_per_image  of the bare cycle; two operations for a multiplication and its addition, nothing computed twice
    mfu              those operations a second over the device's peak, if that is known
    peak_memory_gib  of our cycles, CUDA only

cycles=50        of a block, between which the arms alternate within one run of the trainer
repetitions=5    of every arm; the medians count
arms=all         or ours, without the plain loops, whose memory a device may lack
clock=wall       or cpu: seconds of this process only, for one thread on a busy machine

All arms move the same networks with the same optimizers, so that they share memory and caches. Networks are untrained:
their cost does not depend on their weights.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Times, interleaved, order, ratios, read_arguments, report, synchronize
from fgm.cli.build import build_module, build_run
from fgm.cli.config import require_extras
from fgm.cli.memory import untrained
from fgm.cli.runs import require_device
from fgm.flow import losses
from fgm.training.callbacks import ConsoleLogger, MetricLogger
from fgm.training.diagnostics import Diagnostics
from fgm.training.distillation import Distillation
from fgm.training.ema import brought
from fgm.training.trainer import Run, train
from fgm.utils.errors import UserError, entry
from fgm.utils.records import Measurement

SETTINGS = {"cycles": 50, "repetitions": 5, "arms": ("all", "ours"), "clock": ("wall", "cpu")}
CSV_ONLY = {"csv": {"_target_": "fgm.training.loggers.AppendingCSVLogger", "_partial_": True}}
RATIOS = {f"cycle_over_{arm}": ("cycle", arm) for arm in ("bare", "naive")}
PEAKS = {  # dense bf16 FLOP/s of the tensor cores, from NVIDIA's data sheets
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12,
}  # fmt: skip


def main(arguments: list[str]) -> None:
    own, config = read_arguments(arguments, SETTINGS)
    require_plain(config, own["arms"])
    require_extras(config)
    require_device(config["trainer"])
    began = time.perf_counter()
    with TemporaryDirectory() as directory, Path(os.devnull).open("w") as nowhere:
        log_every = min(own["cycles"], config["training"]["log_every_n_steps"])  # at least once a block
        run = {
            "run_dir": directory,
            "logger": CSV_ONLY,
            "training": config["training"] | {"log_every_n_steps": log_every},
        }
        made = untrained(config | run)
        module: Any = build_module(made)
        bench = CycleBench(module, build_run(made, Console(file=nowhere)), **own)
        results = bench.measure("untrained networks")
    wall_s = round(time.perf_counter() - began, 1)
    report("cycle", config, own, results, bench.times, images_seen=module.images_seen, wall_s=wall_s)


def require_plain(config: dict[str, Any], arms: str) -> None:
    """Refuse everything but a plain one-step distillation, which is what the plain loops are."""
    method = config["method"]
    odd = [] if "t_star" in method else [method["_target_"]]
    odd += [key for key in ("discriminator", "real_uid") if method.get(key)]
    odd += [f"method.steps = {method['steps']}"] if not odd and method["steps"] > 1 else []
    if odd:
        raise UserError(f"a plain distillation in one step is timed: {config['experiment']} has {odd[0]}")
    if config["training"]["micro_batches"] > 1 and arms == "all":
        raise UserError("training.micro_batches > 1: the plain loops take a batch at once; give arms=ours")


class PlainLoops:
    """A distillation's cycle as plain loops, on the module's own networks and optimizers.

    Args:
        module: a distillation without discriminator, real images and further steps.
        optimizers: of its generator and its online network, bare.
        batch_size: samples a cycle.
    """

    def __init__(self, module: Distillation, optimizers: list[Optimizer], batch_size: int) -> None:
        self.module, self.optimizers, self.batch_size = module, optimizers, batch_size
        self.noise = torch.Generator(module.device).manual_seed(0)
        self.online_velocity = module.velocities[1]

    def bare(self) -> None:
        x_0, condition = self.sample()
        self.online_updates(x_0, condition)
        with frozen(self.module.online):
            self.generator_update(x_0, condition)

    def naive(self) -> None:
        self.online_updates(*self.sample())
        self.module.teacher.requires_grad_(True)
        self.generator_update(*self.sample())
        self.module.teacher.requires_grad_(False)
        for net in (self.module.teacher, self.module.online):
            net.zero_grad()

    def sample(self) -> tuple[Tensor, Tensor | None]:
        module, data = self.module, self.module.data
        shape = (self.batch_size, *data.shape)
        z = torch.randn(shape, generator=self.noise, dtype=module.weight_dtype, device=module.device)
        condition = data.conditions(self.batch_size, self.noise)
        return module.generator(z, condition), condition

    def online_updates(self, x_0: Tensor, condition: Tensor | None) -> None:
        module = self.module
        for _ in range(module.online_steps):
            x_t, c, t = module.noised(x_0.detach(), module.online_times, self.noise)
            with self.online_velocity.adapter_active():
                v = self.online_velocity(x_t, t, condition).to(x_t.dtype)
                self.step(1, losses.flow_matching(v, c).mean())

    def generator_update(self, x_0: Tensor, condition: Tensor | None) -> None:
        module = self.module
        t, eps = module.times_and_noise(x_0, module.times, self.noise)
        surrogate, _ = module.mean_generator_loss(x_0, condition, t, eps)
        with module.generator.adapter_active():
            self.step(0, surrogate)

    def step(self, index: int, loss: Tensor) -> None:
        loss.backward()
        self.optimizers[index].step()
        self.optimizers[index].zero_grad()


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Switch off the gradients of the weights that have them."""
    trained = [p for p in net.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    yield
    for p in trained:
        p.requires_grad_(True)


@dataclass
class CycleBench:
    """Runs a block of `cycles` cycles of every arm in turn; an instance takes the place of the trainer's data loader.

    Attributes:
        run: of a directory that is thrown away.
        repetitions: of every arm, after one that is not timed.
        peaks: largest memory of tensors in each of our blocks, GiB; CUDA only.
    """

    module: Distillation
    run: Run
    cycles: int
    repetitions: int
    arms: str = "all"
    clock: str = "wall"
    times: Times = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)

    def loops(self, batch_size: int) -> PlainLoops:
        module: Any = self.module
        return PlainLoops(module, module.trainer.optimizers, batch_size)

    def __len__(self) -> int:
        return self.cycles * (self.repetitions + 1) + 1

    def __iter__(self) -> Iterator[int]:
        """Yield a number for every cycle of ours; the last one's end closes the last block."""
        loops, device = self.loops(self.module.config.batch_size), self.module.device
        clock = time.perf_counter if self.clock == "wall" else time.process_time
        plain: dict[str, Callable[[], None]] = {"bare": loops.bare, "naive": loops.naive} if self.arms == "all" else {}
        for name, timed in order(["cycle", *plain], self.repetitions):
            synchronize(device)
            began = clock()
            if name in plain:
                with self.module.trainer.precision_plugin.train_step_context():
                    for _ in range(self.cycles):
                        plain[name]()
            elif device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                yield from range(self.cycles)
                self.peaks.append(torch.cuda.max_memory_allocated(device) / 2**30)
            else:
                yield from range(self.cycles)
            synchronize(device)
            if timed:
                self.times.setdefault(name, []).append(clock() - began)
        yield 0

    def measure(self, networks: str) -> list[Measurement]:
        """Run it; `networks` describes them in the protocol."""
        run, batch = self.run, self.module.config.batch_size
        callbacks = [run.evaluation_callback, Diagnostics(run.console), MetricLogger(), ConsoleLogger(run.console)]
        train(self.module, run, self, callbacks)
        blocks = f"median of {self.repetitions} blocks of {self.cycles} cycles of {batch}, {self.clock} time"
        protocol = f"{networks}, {run.precision}; {blocks}"
        shared = {"n": self.cycles * batch, "protocol": protocol, "nfe": self.module.generator.nfe, "weights": "raw"}
        rates = [Measurement(name, value, **shared) for name, value in self.rates().items()]
        return [*ratios(self.times, RATIOS, **shared), *rates, *self.speedup(networks)]

    def rates(self) -> dict[str, float]:
        module: Any = self.module
        images_per_s = module.config.batch_size * self.cycles / median(self.times["cycle"])
        low_memory, module.low_memory = module.low_memory, False  # which computes one pass twice
        flops = flops_of(self.loops(1).bare, module.generator, module.online, module.teacher)
        module.low_memory = low_memory
        rates = {"images_per_s": images_per_s, "tflop_per_image": flops / 1e12}
        peak = peak_flops(module.device, self.run.precision)
        rates |= {"mfu": images_per_s * flops / peak} if peak else {}
        return rates | ({"peak_memory_gib": max(self.peaks)} if self.peaks else {})

    def speedup(self, networks: str) -> list[Measurement]:
        """Time the generator against the teacher's ODE, as the run would show them."""
        module, (one, *_, many) = self.module, self.module.samplers()
        n, noise = module.config.batch_size, module.rng("bench", 0)
        z = torch.randn((n, *module.data.shape), generator=noise, device=module.device)
        condition = module.data.conditions(n, noise)

        @torch.no_grad()
        def draw(sampler: Any) -> None:
            with module.trainer.precision_plugin.forward_context():
                sampler(z, condition)
            synchronize(module.device)

        with brought(module.averages.values(), module.device):
            times = interleaved({s.name: partial(draw, s.model) for s in (one, many)}, self.repetitions)
        protocol = f"{networks}; a batch of {n}, against {many.name}, {many.nfe} network calls"
        arms = {"sample_speedup": (many.name, one.name)}
        return ratios(times, arms, n=n, protocol=protocol, nfe=one.nfe, weights="ema")


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return a known GPU's peak FLOP/s in bf16; None for everything else."""
    if device.type != "cuda" or not precision.startswith("bf16"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for gpu, flops in PEAKS.items() if gpu in name), None)


def flops_of(work: Callable[[], object], *nets: nn.Module) -> float:
    """Count the operations of `work`, with gradient checkpointing of the nets off and attention as its two products."""
    checkpointed = [m for net in nets for m in net.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    eager, attention = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with eager, attention, FlopCounterMode(display=False) as counter:
        work()
    for module in checkpointed:
        module.gradient_checkpointing = True  # type: ignore[assignment]
    return float(counter.get_total_flops())


if __name__ == "__main__":
    entry(main, __doc__)
