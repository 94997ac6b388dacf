"""What the rest of the suite asks of a training: its cycle count, what to measure, what to export."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Generator, Tensor, nn

from fgm.evaluation.sampling import Source
from fgm.training.ema import frozen_copy
from fgm.training.setting import Setting


class Method(LightningModule):
    """Manual optimization; one training_step is one cycle, after which every network is a consistent state.

    Attributes:
        ema: the average of what is trained.
        cycle: finished cycles, () int64; saved with the weights, so that a resumed run draws what it would have drawn.
        exported: stem of the file that holds the result.
    """

    exported: str
    ema: Any
    cycle: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.setting, self.schedule = setting, setting.schedule
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
    def sources(self) -> list[Source]:
        """What to measure and show; the first one during training too."""

    @abstractmethod
    def networks(self) -> list[Any]:
        """Those that are called, each once."""

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

    @property
    def images_seen(self) -> int:
        """Samples used for training so far, over all devices."""
        return int(self.cycle) * self.schedule.batch_size * self.trainer.world_size

    def report(self, scalars: dict[str, Tensor], skipped: int) -> None:
        """Count the cycle, and hand the scalars to Record every so often."""
        self.cycle += 1
        if int(self.cycle) % self.schedule.log_every == 0:
            counts = {"skipped": float(skipped), "images_seen": float(self.images_seen)}
            self.log_dict(scalars | {name: torch.tensor(count) for name, count in counts.items()}, logger=False)
