"""What every training here shares: manual optimization, keyed randomness, and one update of one network.

One training_step is one step of the algorithm with all its updates, so that every batch boundary is a consistent state
and Lightning's global_step counts the updates of the first optimizer. All randomness is a pure function of
(seed, role, rank, step): no step reads a global generator, and a resumed run is bit-exact.

A batch can be processed in micro-batches. Every loss is a mean over samples, L = sum_i (n_i / n) L_i over micro-batches of
n_i samples, and so is its gradient: one backward for each micro-batch, one optimizer step, the graph of one micro-batch in
memory at a time. Everything random is drawn for the whole batch, so that `micro_batches` changes no number but by rounding.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from fgm.data import Data
from fgm.flow.paths import ProbabilityPath
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.networks.mixed_precision import use_bfloat16
from fgm.training.config import TrainingConfig
from fgm.training.distributed import clip_gradients, shard
from fgm.training.ema import ema_decay, frozen_copy, update_ema
from fgm.training.optim import MakeOptimizer, keep_constrained, learning_rate
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

MAX_SKIPS = 20
Scalars = dict[str, Tensor]
Loss = tuple[Tensor, Scalars]  # mean over some samples, and means to log


class DivergenceError(UserError):
    """Raised when MAX_SKIPS updates in a row had a gradient that is not finite."""


class TrainingModule(LightningModule):
    """A training with one optimizer per network.

    Args:
        config: see TrainingConfig.
        data: shape, conditions and std of the samples; a teacher's training also draws images from it.
        path, times: where x_t comes from.
        seed: of all noise, times, labels and batches.

    Attributes:
        ema: the average of the trained network, which is exported.  averages: it and further ones, by name.
        step: finished steps, () int64, saved with the weights.
        skipped: updates left out because a gradient was not finite, by network: [in all, since the last good one].
        taken: updates made since the process began, by network.
        images_before: (step, images seen until then); from there on every rank adds batch_size a step.
    """

    exported: str  # stem of the file that holds the result
    updated: tuple[str, ...]  # networks in the order of their optimizers
    ema: Any
    step: Tensor
    frozen: tuple[nn.Module, ...] = ()  # in a tuple: not registered, in no checkpoint, but moved to the device
    half_frozen = False
    logged_by_callback = False  # MetricLogger hands scalars to the loggers, in place of Lightning's own schedule

    def __init__(
        self, config: TrainingConfig, data: Data, path: ProbabilityPath, times: TimestepDensity, seed: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.data, self.path, self.times, self.seed = config, data, path, times, seed
        self.images_before: tuple[int, int] = (0, 0)
        self.skipped: dict[str, list[int]] = {}
        self.taken: dict[str, int] = {}
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._ddp_params_and_buffers_to_ignore = ["step"]

    @property
    def teacher(self) -> VelocityModel:
        """The frozen velocity that is distilled; not a registered submodule."""
        return self.frozen[0]  # type: ignore[return-value]

    @property
    def start(self) -> Any:
        """The generator before training."""
        return self.frozen[1]

    def average(self, net: nn.Module) -> None:
        """Start every average as a copy of net. Kept on the host, they are hidden from DDP."""
        self.ema, self.extra_emas = frozen_copy(net), nn.ModuleList(frozen_copy(net) for _ in self.config.ema_extra)
        names = [f"ema_{half_life:g}" for half_life in self.config.ema_extra]
        self.averages: dict[str, Any] = {"ema": self.ema} | dict(zip(names, self.extra_emas, strict=True))
        if self.config.ema_device == "cpu":
            averaged = [name for name in self.state_dict() if name.startswith(("ema.", "extra_emas."))]
            self._ddp_params_and_buffers_to_ignore += averaged

    def update_averages(self, net: nn.Module) -> None:
        """Take one step of every average, after the images of the present step."""
        c, images = self.config, self.config.batch_size * self.trainer.world_size
        for ema, half_life in zip(self.averages.values(), (c.ema_half_life, *c.ema_extra), strict=True):
            update_ema(ema, net, ema_decay(half_life, self.images_seen + images, images, c.ema_max_half_life))

    def halve(self, net: VelocityModel) -> None:
        """Keep a frozen network's matrices in bfloat16, see mixed_precision.py."""
        self.half_frozen = True
        use_bfloat16(net)

    def on_fit_start(self) -> None:
        if self.half_frozen and self.weight_dtype != torch.float32:
            raise UserError("method.teacher_dtype = bfloat16: the weights are float64; leave one of them out")
        for net in self.frozen:
            net.to(self.device, None if self.half_frozen else self.weight_dtype).requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the step counter on the CPU, so that reading it never waits for the GPU; averages too if they live there."""
        names = ("ema", "extra_emas") if self.config.ema_device == "cpu" else ()
        on_host: Any = {name: self._modules[name] for name in names if name in self._modules}
        self._modules.update(dict.fromkeys(on_host))
        super()._apply(fn, recurse)
        self._modules.update({name: ema._apply(lambda tensor: fn(tensor).cpu()) for name, ema in on_host.items()})
        self.step = self.step.cpu()
        return self

    @abstractmethod
    def networks(self) -> list[VelocityModel]:
        """Return the velocity networks that are called, each once."""

    @abstractmethod
    def samplers(self) -> list[Any]:
        """Return what to measure and show; the first one also during training."""

    @abstractmethod
    def result(self) -> nn.Module:
        """Return the averaged network, which a finished run exports."""

    def train_dataloader(self) -> DataLoader[int]:
        """Return one number a step: a step draws all that it needs from its keyed generators."""
        steps: Any = range(self.config.max_steps)
        return DataLoader(steps, batch_size=None)

    def configure_model(self) -> None:
        """Shard the networks if the strategy has a device mesh; averages always compute in float32."""
        if self.device_mesh is None:
            return
        half, averages = (
            self.trainer.precision == "bf16-mixed",
            {m for ema in self.averages.values() for m in ema.modules()},
        )
        for net in self.networks():
            compute = torch.bfloat16 if half and net not in averages else None
            shard(net, self.device_mesh["data_parallel"], compute)

    # Randomness and data.

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of weights, noise, times and losses: float32 under bf16-mixed too."""
        return next(self.parameters()).dtype

    def rng(self, role: str, index: int) -> Generator:
        """Return the generator of a role in a step, on this device and rank."""
        return keyed_generator(self.seed, role, self.global_rank, index=index, device=self.device)

    def draw_data(self, data: Data, rng: Generator) -> tuple[Tensor, Tensor | None]:
        """Return a batch of x_0 and its conditions on this device, in the weights' dtype whatever the precision is."""
        with torch.autocast(self.device.type, enabled=False):
            x_0, condition = data.draw(self.config.batch_size, rng)
        return x_0.to(self.device, self.weight_dtype), None if condition is None else condition.to(self.device)

    def normal(self, shape: tuple[int, ...], rng: Generator) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=self.weight_dtype, device=self.device)

    def times_and_noise(self, x_0: Tensor, times: TimestepDensity, rng: Generator) -> tuple[Tensor, Tensor]:
        """Return t (batch,) and eps (batch, *dims) in x_0's dtype."""
        t = times.at(self.progress).sample(len(x_0), rng, x_0.dtype)
        return t, torch.randn(x_0.shape, generator=rng, dtype=x_0.dtype, device=x_0.device)

    def noised(self, x_0: Tensor, times: TimestepDensity, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_t, c and t for fresh t and eps."""
        t, eps = self.times_and_noise(x_0, times, rng)
        return *self.path.interpolate(x_0, eps, t), t

    # One update of one network.

    def update(self, name: str, losses: Iterable[Tensor]) -> Tensor:
        """Take one clipped optimizer step on a sum of losses and move the learning rate on.

        Args:
            name: of the network, see `updated`. Only the first one's steps count as Lightning's global_step.
            losses: micro_batches summands, formed lazily so that one graph is alive at a time.

        Returns:
            The L2 norm of the gradient before clipping, (). If it is not finite the step is skipped and counted.

        Raises:
            DivergenceError: after MAX_SKIPS skipped updates in a row.
        """
        optimizer = self.optimizer(name)
        optimizer.zero_grad(set_to_none=True)
        with self.toggled_optimizer(optimizer):
            for i, loss in enumerate(losses, 1):
                with self.without_sync() if i < self.config.micro_batches else nullcontext():
                    self.manual_backward(loss)
        norm = clip_gradients(optimizer.optimizer, self.config.gradient_clip_val)
        total, in_a_row = self.skipped.setdefault(name, [0, 0])
        if torch.isfinite(norm):
            (optimizer if name == self.updated[0] else optimizer.optimizer).step()
            self.skipped[name], self.taken[name] = [total, 0], self.taken.get(name, 0) + 1
        else:
            self.skipped[name] = [total + 1, in_a_row + 1]
        optimizer.zero_grad(set_to_none=True)
        as_list(self.lr_schedulers())[self.updated.index(name)].step()
        if self.skipped[name][1] == MAX_SKIPS:
            raise DivergenceError(f"{name}: {MAX_SKIPS} non-finite gradients in a row: lower optimizer.lr")
        return norm

    def optimizer(self, name: str) -> Any:
        """Return the LightningOptimizer of a network."""
        return as_list(self.optimizers())[self.updated.index(name)]

    def scheduled(self, make: MakeOptimizer, net: nn.Module, per_step: int = 1, start_step: int = 0) -> dict[str, Any]:
        """Return optimizer and schedule of a network that is updated per_step times a step from start_step on."""
        c, optimizer = self.config, keep_constrained(make(net), net)
        updates = max(1, c.max_steps - start_step) * per_step
        schedule = learning_rate(optimizer, updates, c.warmup_steps * per_step, c.lr_decay_fraction, c.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @property
    def whole_batch(self) -> bool:
        """Whether the batch is one micro-batch."""
        return self.config.micro_batches == 1

    def parts(self, *batch: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Yield the micro-batches of a batch."""
        n = next(len(x) for x in batch if x is not None)
        for part in slices(n, self.config.micro_batches):
            yield tuple(x if x is None else x[part] for x in batch)

    def in_parts(self, loss: Callable[..., Loss], scalars: Scalars, *batch: Tensor | None) -> Iterator[Tensor]:
        """Yield the mean of `loss` over the batch as one summand per micro-batch; add up its scalars in `scalars`."""
        for part in self.parts(*batch):
            share = len(part[0]) / len(batch[0])  # type: ignore[arg-type]
            value, logged = loss(*part)
            for name, scalar in logged.items():
                scalars[name] = scalars.get(name, 0) + share * scalar.detach()
            yield share * value

    def without_sync(self) -> Any:
        """Return a context in which DDP leaves gradients on their rank; the last backward of an update sends the sum."""
        return getattr(self.trainer.strategy, "block_backward_sync", nullcontext)()

    # What a step reports.

    @property
    def progress(self) -> float:
        """The share of the training that lies behind, in [0, 1]."""
        return min(1.0, int(self.step) / self.config.max_steps)

    @property
    def images_seen(self) -> int:
        """Samples used for training so far, over all devices."""
        step, images = self.images_before
        return images + (int(self.step) - step) * self.config.batch_size * self.trainer.world_size

    @property
    def skipping(self) -> bool:
        """Whether some network's last update was skipped."""
        return any(in_a_row for _, in_a_row in self.skipped.values())

    @property
    def logs_now(self) -> bool:
        """Whether the last step has a log entry."""
        return int(self.step) % self.config.log_every_n_steps == 0

    def finish_step(self, scalars: Scalars) -> None:
        """Count the step, and log its scalars every log_every_n_steps."""
        self.step += 1
        if self.logs_now:
            skipped = sum(total for total, _ in self.skipped.values())
            counts = {"skipped": torch.tensor(float(skipped)), "images_seen": torch.tensor(float(self.images_seen))}
            self.log_dict(scalars | counts, logger=bool(self.loggers) and not self.logged_by_callback)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped = dict(checkpoint["skipped"])


def slices(n: int, parts: int) -> list[slice]:
    """Cut n samples into parts as even as possible."""
    return [slice(a, b) for a, b in pairwise(n * i // parts for i in range(parts + 1))]


def as_list(one_or_many: Any) -> Sequence[Any]:
    """Return a list: Lightning hands out a single optimizer or scheduler bare."""
    return one_or_many if isinstance(one_or_many, Sequence) else [one_or_many]
