"""Data sets draw with a generator on any device: a fake GPU refuses every mix of devices that a real one refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_images import SETS
from test_latents import latents
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fgm.data.images import CachedDataset, Digits
from fgm.data.latents import Latents
from fgm.data.points import Checkerboard, Ring, Spirals, TwoMoons
from fgm.data.shapes.dataset import Shapes

GPU, HOST = torch.device("cuda"), torch.device("cpu")


class OnGpu(Tensor):
    """A tensor that claims to be on the GPU, as does everything computed from it."""


class GpuGenerator(torch.Generator):
    device = GPU


class FakeGpu(TorchFunctionMode):
    """Refuses what torch refuses: a draw on another device than its generator's, tensors of two devices in one call."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if isinstance(args[0], OnGpu) else HOST
        if name == "cpu" or (name == "to" and isinstance(args[1], str | torch.device)):
            return args[0].as_subclass(OnGpu if name == "to" and torch.device(args[1]) == GPU else Tensor)
        if isinstance(kwargs.get("generator"), torch.Generator):
            on_gpu = isinstance(kwargs["generator"], GpuGenerator)
            assert (torch.device(kwargs.pop("device", HOST)) == GPU) == on_gpu, f"{name} draws on another device"
            return func(*args, **kwargs).as_subclass(OnGpu if on_gpu else Tensor)
        kinds = {isinstance(x, OnGpu) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim}
        assert len(kinds) < 2, f"{name} of tensors on two devices"
        return func(*args, **kwargs)


MADE: dict[str, Any] = {
    "digits": Digits, "ring": Ring, "checkerboard": Checkerboard, "two moons": TwoMoons, "spirals": Spirals,
    "shapes": Shapes, "cached": lambda: CachedDataset(Shapes(), n=8),
}  # fmt: skip


def made(name: str, tmp_path: Path) -> Any:
    if name == "latents":
        latents(tmp_path / "cache")
        return Latents(str(tmp_path / "cache"))
    return MADE[name]() if name in MADE else SETS[name](tmp_path)[0]


@pytest.mark.parametrize("name", [*MADE, *SETS, "latents"])
def test_conditions_are_on_the_generators_device_and_draws_there_or_on_the_cpu(name: str, tmp_path: Path) -> None:
    data, (noise, twin, other) = made(name, tmp_path), (GpuGenerator().manual_seed(seed) for seed in (0, 0, 1))
    with FakeGpu():
        x_0, labels = data.draw(5, noise)
        again, elsewhere = (data.draw(5, generator)[0] for generator in (twin, other))
        conditions = data.conditions(5, noise)
    assert torch.equal(x_0, again) and not torch.equal(x_0, elsewhere)
    assert x_0.shape == (5, *data.shape) and x_0.dtype == torch.float32
    assert (conditions is None) == (labels is None) and isinstance(conditions, OnGpu | None)
