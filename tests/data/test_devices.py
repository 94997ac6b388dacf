"""A set draws by a generator of any device: what of it lives on a GPU is drawn, moved and mixed as a GPU lets it be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_image_sets import SETS
from test_latents import latents
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fgm.data.digits import Digits
from fgm.data.latents import Latents
from fgm.data.points import Checkerboard, Ring, Spirals, TwoMoons
from fgm.data.pool import Pool
from fgm.data.shapes.dataset import Shapes

GPU, HOST = torch.device("cuda"), torch.device("cpu")


class OnGpu(Tensor):
    """A tensor that says that it lives there, as all that is made of it does."""


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
    "shapes": Shapes, "pool": lambda: Pool(Shapes(), n=8),
}  # fmt: skip


def made(name: str, tmp_path: Path) -> Any:
    if name == "latents":
        latents(tmp_path / "cache")
        return Latents(str(tmp_path / "cache"))
    return MADE[name]() if name in MADE else SETS[name](tmp_path)[0]


@pytest.mark.parametrize("name", [*MADE, *SETS, "latents"])
def test_conditions_lie_on_the_generators_device_and_draws_there_or_on_the_host(name: str, tmp_path: Path) -> None:
    data, (noise, twin, other) = made(name, tmp_path), (GpuGenerator().manual_seed(seed) for seed in (0, 0, 1))
    with FakeGpu():
        x_0, labels = data.draw(5, noise)
        again, elsewhere = (data.draw(5, generator)[0] for generator in (twin, other))
        asked = data.conditions(5, noise)
    assert torch.equal(x_0, again) and not torch.equal(x_0, elsewhere)
    assert x_0.shape == (5, *data.shape) and x_0.dtype == torch.float32
    assert (asked is None) == (labels is None) and isinstance(asked, OnGpu | None)
