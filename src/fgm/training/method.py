"""What the rest of the suite asks of a training: its cycle count, what to measure, what to export."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Generator, Tensor, nn

from fgm.data import Data
from fgm.evaluation.sampling import Sampler
from fgm.networks import VelocityModel
from fgm.training.descend import Descent
from fgm.training.ema import frozen_copy
from fgm.training.setting import Setting
from fgm.training.sharding import shard


class Method(LightningModule):
    """Manual optimization; one training_step is one cycle, after which every network is a consistent state.

    Attributes:
        ema: the average of what is trained.
        cycle: finished cycles, () int64; saved with the weights, so that a resumed run draws what it would have drawn.
        exported: stem of the file that holds the result.
        descents: the updates of the networks that are trained.
        seen_until: a cycle, and the samples used until its end; from there on every rank adds as many.
    """

    exported: str
    ema: Any
    cycle: Tensor
    descents: list[Descent]
    seen_until: tuple[int, int] = (0, 0)

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.setting, self.schedule, self.descents = setting, setting.schedule, []
        self.register_buffer("cycle", torch.zeros((), dtype=torch.int64))
        self._ddp_params_and_buffers_to_ignore = ["cycle"]

    def average(self, net: nn.Module) -> None:
        """From now on ema is a copy of net; in the host's memory it is no business of DDP's either."""
        self.ema = frozen_copy(net)
        if self.schedule.ema_device == "cpu":
            self._ddp_params_and_buffers_to_ignore += [name for name in self.state_dict() if name.startswith("ema.")]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """On whatever device the networks are, the count stays on the host: to read it must not wait for theirs.

        So does the average with ema_device = cpu.
        """
        ema = self._modules.get("ema") if self.schedule.ema_device == "cpu" else None
        if ema is not None:
            self._modules["ema"] = None  # keeps its place among the modules
        super()._apply(fn, recurse)
        if ema is not None:
            self._modules["ema"] = ema._apply(lambda tensor: fn(tensor).cpu())
        self.cycle = self.cycle.cpu()
        return self

    @abstractmethod
    def networks(self) -> list[VelocityModel]:
        """Those that are called, each once."""

    def configure_model(self) -> None:
        """Shards the networks where the strategy tells over which ranks; the average always computes in float32."""
        if self.device_mesh is None:
            return
        half, averages = self.trainer.precision == "bf16-mixed", set(self.ema.modules())
        for net in self.networks():
            compute = torch.bfloat16 if half and net not in averages else None
            shard(net, self.device_mesh["data_parallel"], compute)

    @abstractmethod
    def sources(self) -> list[Sampler]:
        """What to measure and show; the first one during training too."""

    @abstractmethod
    def result(self) -> nn.Module:
        """The averaged network, to be exported."""

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of weights, noise, times and losses; bf16-mixed leaves it float32."""
        return next(self.parameters()).dtype

    def noise(self, role: str, index: int) -> Generator:
        """The stream of a role in a cycle or turn, on this device and rank."""
        return self.setting.stream(role, self.global_rank, index, self.device)

    def draw(self, data: Data, noise: Generator) -> tuple[Tensor, Tensor | None]:
        """A batch of x_0 and its conditions, on this device; float32, whatever the networks' arithmetic is."""
        with torch.autocast(self.device.type, enabled=False):
            x_0, condition = data.draw(self.schedule.batch_size, noise)
        on_device = condition if condition is None else condition.to(self.device)
        return x_0.to(self.device, self.weight_dtype), on_device

    @property
    def images_seen(self) -> int:
        """Samples used for training so far, over all devices."""
        cycle, images = self.seen_until
        return images + (int(self.cycle) - cycle) * self.schedule.batch_size * self.trainer.world_size

    @property
    def skipping(self) -> bool:
        """Whether the last update of some network was left out, since its gradient was not finite."""
        return any(descent.in_a_row for descent in self.descents)

    @property
    def logs_now(self) -> bool:
        """Whether the last cycle has a log entry."""
        return int(self.cycle) % self.schedule.log_every == 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = [[descent.skipped, descent.in_a_row] for descent in self.descents]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for descent, counts in zip(self.descents, checkpoint.get("skipped", ()), strict=False):
            descent.skipped, descent.in_a_row = counts

    def report(self, scalars: dict[str, Tensor]) -> None:
        """Count the cycle, and hand the scalars to Record every so often."""
        self.cycle += 1
        if self.logs_now:
            skipped = sum(descent.skipped for descent in self.descents)
            counts = {"skipped": float(skipped), "images_seen": float(self.images_seen)}
            self.log_dict(scalars | {name: torch.tensor(count) for name, count in counts.items()}, logger=False)
