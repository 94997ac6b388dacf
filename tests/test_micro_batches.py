"""A batch in parts has the gradients of the batch at once, in every network that is stepped, and needs less memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN
from fgm.training.descend import Descent
from fgm.training.setting import Schedule
from torch import Tensor, nn
from toy_trainings import SCHEDULE, network, run, setting

from fgm.data.points import Ring
from fgm.networks.lora import LoRA
from fgm.training.distillation import Distillation
from fgm.training.flow_matching import FlowMatching
from fgm.training.memory_estimate import estimate_memory
from fgm.training.module import Method, slices
from fgm.training.real_images import RealData

VARIANTS: dict[str, dict[str, Any]] = {
    "three online turns": {"online_turns": 3},
    "two stages": {"two_stage": True, "lambda_1": 0.0},
    "a discriminator": {"adversary": partial(GAN, r1_weight=0.5)},
    "a discriminator, two stages": {"adversary": partial(GAN, r1_weight=0.5, r1_at="x_t"), "two_stage": True},
    "real images": {"real_data": partial(RealData, a=0.9, b=0.92)},
    "three steps": {"steps": 3},
    "DMD's direction": {"detach": True, "lambda_1": 0.0},
    "adapters": {"adapters": LoRA(rank=2, alpha=4.0, targets=["layers.0", "layers.2"])},
}


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.01)


def schedule(parts: int) -> Schedule:
    return replace(SCHEDULE, cycles=2, warmup=0, decay=0.0, clip=float("inf"), micro_batches=parts)


def distillation(parts: int, **options: Any) -> Distillation:
    s = setting(net=network(2), teacher=network(1), schedule=schedule(parts), optimizer=sgd)
    return Distillation(s, t_star=0.9, **options)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradient of each update, all of its tensors in one."""
    seen: list[Tensor] = []
    clipped = Descent.clipped

    def watched(descent: Descent, parameters: list[nn.Parameter]) -> Tensor:
        seen.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        return clipped(descent, parameters)

    monkeypatch.setattr(Descent, "clipped", watched)
    return seen


def difference(updates: list[Tensor], folder: Path, make: Callable[[int], Method], precision: str) -> float:
    """The largest of an update in 3 parts of 16 samples, which are 5, 5 and 6, from that in one; relative."""
    return largest_change(updates, folder, [make(1), make(3)], precision)


def largest_change(updates: list[Tensor], folder: Path, modules: list[Method], precision: str) -> float:
    updates.clear()
    for i, module in enumerate(modules):
        run(module, folder / str(i), precision)
    whole, other = updates[: len(updates) // 2], updates[len(updates) // 2 :]
    assert all(b.norm() > 0 for b in whole)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(other, whole, strict=True))


def rounding(updates: list[Tensor], folder: Path, make: Callable[[int], Method]) -> float:
    """How far an update in single precision moves when every weight moves by one unit in its last place; relative."""
    nudged, noise = make(1), torch.Generator().manual_seed(0)
    for p in (p for net in nudged.networks() for p in net.parameters()):
        p.data.mul_(1 + 2.0**-23 * (2 * torch.randint(2, p.shape, generator=noise) - 1))
    return largest_change(updates, folder, [make(1), nudged], "32-true")


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_distillation_in_parts_has_the_gradients_of_the_whole(
    options: dict[str, Any], updates: list[Tensor], tmp_path: Path
) -> None:
    assert difference(updates, tmp_path, lambda parts: distillation(parts, **options), "64-true") <= 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_in_single_precision_it_differs_by_rounding_alone(name: str, updates: list[Tensor], tmp_path: Path) -> None:
    """By at most three times what one rounding of every weight does."""

    def make(parts: int) -> Distillation:
        return distillation(parts, **VARIANTS[name])

    bound = 3 * rounding(updates, tmp_path / "nudged", make)
    moved = difference(updates, tmp_path / "parts", make, "32-true")
    print(f"{name}: {moved:.1e} of {bound:.1e}")
    assert moved <= bound


def test_so_has_the_training_of_a_teacher(updates: list[Tensor], tmp_path: Path) -> None:
    def make(parts: int) -> Method:
        return FlowMatching(setting(teacher=None, data=Ring(), schedule=schedule(parts), optimizer=sgd))

    bound = 3 * rounding(updates, tmp_path / "nudged", make)
    assert difference(updates, tmp_path / "parts", make, "32-true") <= bound


def test_what_is_logged_is_the_mean_of_the_batch(tmp_path: Path) -> None:
    told: list[dict[str, Tensor]] = []
    for parts in (1, 3):
        module = distillation(parts, adversary=partial(GAN, r1_weight=0.5))
        module.report = lambda scalars, m=module: (told.append(scalars), m.cycle.add_(1))  # type: ignore[method-assign, assignment]
        run(module, tmp_path / str(parts))
    assert len(told) == 4
    for one, three in zip(told[:2], told[2:], strict=True):
        assert one.keys() == three.keys()
        assert all(torch.allclose(one[name], three[name], rtol=1e-4, atol=1e-6) for name in one)


@pytest.mark.parametrize("n, parts", [(16, 1), (16, 3), (5, 5), (7, 2)])
def test_parts_cover_the_batch_and_are_even(n: int, parts: int) -> None:
    cut = [torch.arange(n)[where] for where in slices(n, parts)]
    assert torch.equal(torch.cat(cut), torch.arange(n)) and len(cut) == parts
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize("two_stage", [False, True])
def test_a_quarter_of_the_batch_at_a_time_takes_less_than_a_third_of_the_graphs(two_stage: bool) -> None:
    """The generator's graph, besides, is never there with another network's."""

    def activations(parts: int) -> int:
        def make() -> Distillation:
            s = setting(net=network(2), teacher=network(1), optimizer=sgd)
            large = replace(s, schedule=replace(SCHEDULE, batch_size=4096, micro_batches=parts))
            return Distillation(large, t_star=0.9, two_stage=two_stage)

        return estimate_memory(make, "32-true").activations

    assert activations(4) < activations(1) / 3


def test_more_parts_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="micro_batches = 17 is more than"):
        replace(SCHEDULE, micro_batches=17)
