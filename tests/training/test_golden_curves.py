"""Golden curves: twenty float64 steps of every variant of the training, which a neutral change must not move.

A curve is what a run logs at each step, and three fixed projections of each network's weights at its end. The update is
gradient descent with momentum, which amplifies no rounding, where Adam turns the last bit of a gradient near zero into
a whole step. BOUND follows from a measurement made with the curves: `sensitivity` is how far a curve moves, relative to
its largest entry, when every weight is moved by one unit in its last place after every step. A step rounds along some
hundred operations, not one, and two machines may round each differently, so a curve may move by 64 times that.

`python tests/training/test_golden_curves.py` writes golden_curves.json anew; CHANGELOG says when and why.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from adversaries import GAN, Pictures, dit
from ranks import on_ranks
from torch import Tensor, nn
from toy_trainings import CONFIG, LINEAR, distillation, last_weights, pieces, run, teacher_training

from fgm.flow import losses
from fgm.flow.paths import TrigonometricPath
from fgm.flow.times import Uniform
from fgm.networks import VelocityModel
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.networks.mlp import VelocityMLP
from fgm.training.config import TrainingConfig
from fgm.training.distillation import Distillation
from fgm.training.distributed import DDP
from fgm.training.real_images import RealUID
from fgm.utils.records import read_metrics

GOLDEN = Path(__file__).with_name("golden_curves.json")
STEPS, BOUND, ULP = 20, 64, 2.0**-52
LOGGED = ("mismatch", "fgm_loss", "online_loss", "loss", "discriminator_loss", "adversarial_loss", "sample_std")
STEPWISE = replace(CONFIG, max_steps=STEPS, log_every_n_steps=1)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)


def plane(**options: Any) -> Distillation:
    return distillation(config=STEPWISE, optimizer=sgd, **options)


def pictures(config: TrainingConfig = STEPWISE, **options: Any) -> Distillation:
    """Labelled pictures, a small transformer, and its guided teacher."""
    s = pieces(
        teacher=ClassifierFreeGuidance(dit(), 2.0), data=Pictures(True), network=dit, config=config, optimizer=sgd
    )
    return Distillation(**s | {"t_star": 0.7} | options)


def adapted(**options: Any) -> Distillation:
    torch.manual_seed(3)
    teacher = VelocityMLP(dim=2, width=16, depth=1)
    s = pieces(teacher=teacher, config=STEPWISE, optimizer=sgd)
    return Distillation(**s, t_star=0.9, adapters=LINEAR, **options)


def classic(**options: Any) -> dict[str, Any]:
    return {"weighting": losses.x_0_weight, "normalizer": losses.dmd_normalizer} | options


def elsewhere(net: VelocityModel) -> Distillation:
    """Another path, another density for the online network, and an average on the host."""
    config = replace(STEPWISE, ema_device="cpu")
    s = pieces(config=config, optimizer=sgd, path=TrigonometricPath(), teacher=net, data=Pictures(True))
    return Distillation(**s, t_star=0.8, c_in="variance", online_times=Uniform(0.1, 0.9))


VARIANTS: dict[str, Callable[[], Any]] = {
    "mixture": partial(plane, online_steps=2),
    "pictures": partial(pictures, guidance="none"),
    "l_2_alone": partial(plane, lambda_1=0.0, c_in="one"),
    "sid": partial(plane, lambda_1=-0.4, **classic()),
    "dmd": partial(plane, lambda_1=0.0, detach=True, **classic()),
    "realuid": partial(plane, real_uid=RealUID(0.9, 0.92)),
    "gan": partial(pictures, discriminator=partial(GAN, r1_weight=0.1)),
    "few_step": partial(plane, steps=3),
    "guidance_in_the_teacher": partial(pictures, online_steps=2),
    "guidance_in_both": partial(pictures, guidance="long_and_short", low_memory=True),
    "adapters": adapted,
    "two_stage": partial(plane, low_memory=True, weighting=losses.sid_dit_weight, normalizer=losses.unit_normalizer),
    "micro_batches": partial(pictures, config=replace(STEPWISE, micro_batches=3), discriminator=GAN),
    "path_and_times": lambda: elsewhere(dit()),
    "teacher": lambda: teacher_training(
        data=Pictures(True), network=dit, config=STEPWISE, optimizer=sgd, label_dropout=0.3
    ),
}  # fmt: skip


def projections(state: dict[str, Tensor]) -> dict[str, list[float]]:
    """Three fixed numbers of each network's weights."""
    nets: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(state.items()):
        if tensor.is_floating_point():
            nets.setdefault(name.split(".")[0], []).append(tensor.double().flatten())
    found = {}
    for net, parts in nets.items():
        flat = torch.cat(parts)
        directions = [torch.cos(k * torch.arange(len(flat), dtype=torch.float64)) for k in (1, 2, 3)]
        found[net] = [float(flat @ direction) for direction in directions]
    return found


def curve(module: Any, folder: Path) -> dict[str, list[float]]:
    run(module, folder, "64-true")
    rows = read_metrics(folder / "metrics.csv")
    assert len(rows) == STEPS
    logged = {name: [float(row[name]) for row in rows] for name in LOGGED if rows[0].get(name)}
    return logged | projections(module.state_dict())


def jittered(module: Any) -> Any:
    """The module, whose weights move by one unit in the last place, up or down, after every step."""
    step, noise = module.training_step, torch.Generator().manual_seed(1)

    def step_and_jitter(batch: Any) -> None:
        step(batch)
        for p in module.parameters():
            p.data.mul_(1 + ULP * (2 * torch.randint(2, p.shape, generator=noise) - 1))

    module.training_step = step_and_jitter
    return module


def distance(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """Largest difference of two curves, relative to the largest entry of each of their rows."""
    assert a.keys() == b.keys()
    rows = ((torch.tensor(a[name]), torch.tensor(b[name])) for name in a)
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in rows)


def on_two_processes(folder: Path, prepared: Callable[[Any], Any] = lambda module: module) -> dict[str, list[float]]:
    """Made in float64 too: what a processor rounds in float32 would be the start of another curve."""
    on_ranks(lambda: two_ranks.run(prepared(two_ranks.distillation(STEPS)), folder, DDP(), 2, precision="64-true"))
    return projections(last_weights(folder))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("float64")
def test_golden_curve(name: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    moved = distance(curve(VARIANTS[name](), tmp_path), golden["curve"])
    assert moved <= BOUND * golden["sensitivity"], f"{moved:.1e}"


@pytest.mark.usefixtures("float64")
def test_golden_curve_of_ddp_on_two_processes(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())["ddp"]
    moved = distance(on_two_processes(tmp_path), golden["curve"])
    assert moved <= BOUND * golden["sensitivity"], f"{moved:.1e}"


def record() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in VARIANTS.items():
            exact = curve(make(), Path(folder, name))
            other = curve(jittered(make()), Path(folder, f"{name}_jittered"))
            golden[name] = {"sensitivity": distance(other, exact), "curve": exact}
            print(f"{name}: sensitivity {golden[name]['sensitivity']:.1e}")
        exact, other = (
            on_two_processes(Path(folder, f"ddp{i}"), how) for i, how in enumerate((lambda module: module, jittered))
        )
        golden["ddp"] = {"sensitivity": distance(other, exact), "curve": exact}
        print(f"ddp: sensitivity {golden['ddp']['sensitivity']:.1e}")
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    record()
