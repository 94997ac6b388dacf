"""The package from Python gives what its commands give."""

from pathlib import Path

import pytest
import torch
from tiny_runs import TINY, finished, run_dir
from torch import Tensor, nn

import fgm
from fgm.cli import sample
from fgm.data.points import Ring
from fgm.evaluation.point_metrics import PointMetrics
from fgm.flow.analytic import ring
from fgm.networks.analytic import GaussianMixtureVelocity
from fgm.networks.mlp import VelocityMLP
from fgm.utils.errors import UserError


def test_a_loaded_run_draws_the_samples_of_the_command_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    run = finished(tmp_path, "digits_fgm", TINY)
    monkeypatch.setattr("fgm.evaluation.plots.save_square", lambda x_0, path: drawn.append(x_0))
    sample.main([*run, "n=5", "sample_seed=3", f"out={tmp_path}/x.png"])
    generator = fgm.load(run_dir(run))
    x_0 = generator(n=5, seed=3)
    assert torch.equal(x_0, drawn[0]) and x_0.shape == (5, 1, 8, 8) and generator.sampler.nfe == 1
    z = torch.randn(4, 1, 8, 8)
    assert torch.equal(generator(z, torch.arange(4)), generator.sampler.model(z, torch.arange(4)))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        fgm.load(tmp_path)


class Plain(nn.Module):
    """The velocity of data N(0, 4): x_t' / x_t of the rectified path in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        return self.scale * x_t * (t - 4 * (1 - t)) / (4 * (1 - t) ** 2 + t**2)


def test_distilling_any_module_brings_the_generator_to_its_distribution() -> None:
    before = fgm.distill(Plain(), shape=(1,), max_steps=1, lr=1e-6, batch_size=8, t_star=0.9)
    after = fgm.distill(Plain(), shape=(1,), max_steps=150, lr=2e-2, batch_size=256, t_star=0.9, ema_half_life=0.05)
    std = [float(generator(n=2000).std()) for generator in (before, after)]
    assert abs(std[1] - 2) < abs(std[0] - 2) / 2


def test_a_few_step_generator_draws_from_given_noise() -> None:
    generator = fgm.distill(Plain(), shape=(1,), max_steps=1, batch_size=8, steps=3)
    assert generator(torch.randn(5, 1)).shape == (5, 1) and generator.sampler.nfe == 3


def test_distilling_twice_gives_the_same_bits() -> None:
    first, again = (fgm.distill(Plain(), shape=(1,), max_steps=3, batch_size=8)(n=9) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("options, message", [
    ({"t_star": 1.5}, r"t_star = 1.5: must lie in \(0, 1\]"),
    ({"max_steps": 0}, "max_steps = 0"),
    ({"ema_half_life": -1.0}, "ema_half_life = -1.0"),
    ({"t_sta": 0.5}, "t_sta"),
    ({"shape": None}, "give data= or shape="),
])  # fmt: skip
def test_a_bad_option_is_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        fgm.distill(Plain(), **{"shape": (1,)} | options)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_evaluate_measures_what_the_suite_says() -> None:
    data = Ring()
    teacher = GaussianMixtureVelocity(ring(data.modes, data.radius, data.mode_std), fgm.paths.RectifiedPath())
    fresh = {"network": lambda: VelocityMLP(width=16), "generator_init": "random", "online_init": "random"}
    generator = fgm.distill(teacher, data, max_steps=1, batch_size=8, **fresh)
    names = {m.metric: m for m in fgm.evaluate(generator, PointMetrics(data), n=100)}
    assert names["sliced_w2"].n == 100 and names["sliced_w2"].nfe == 1
    with pytest.raises(UserError, match="comes from no run"):
        fgm.evaluate(generator)
