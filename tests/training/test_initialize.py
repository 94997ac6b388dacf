"""Where a network's weights come from before a distillation."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import LINEAR, distillation, network

from fgm.data.points import Ring
from fgm.evaluation.sampling import ode_sampler
from fgm.flow.times import Uniform
from fgm.networks import VelocityModel
from fgm.networks.mlp import VelocityMLP
from fgm.training import initialize


def test_network_fitted_to_an_exact_teacher_is_close_to_it(monkeypatch: Any) -> None:
    monkeypatch.setattr(initialize, "FIT_ITERATIONS", 300)
    monkeypatch.setattr(initialize, "FIT_POOL", 1000)
    module = distillation()
    torch.manual_seed(0)
    net = initialize.initialize("fit", module, module.teacher, lambda: VelocityMLP(dim=2, width=64, depth=2))
    x, t = torch.randn(500, 2), Uniform(0.3, 1.0).sample(500, torch.Generator().manual_seed(0))
    exact = module.teacher(x, t)
    assert (net(x, t) - exact).square().mean() < 0.1 * exact.square().mean()
    with pytest.raises(ValueError, match="has no weights to copy"):
        distillation(generator_init="teacher")
    with pytest.raises(ValueError, match="teacher, fit"):
        distillation(online_init="best")


def test_network_is_fitted_under_the_conditions_of_its_data(monkeypatch: Any) -> None:
    """Captions have no classes to be balanced over."""
    conditions: list[Tensor | None] = []

    class Captioned(Ring):
        def conditions(self, n: int, generator: torch.Generator) -> Tensor:  # type: ignore[override]
            return torch.randint(9, (n,), generator=generator)

    class Recording(VelocityModel):
        shape, num_classes = (2,), 0

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            conditions.append(condition)
            return -self.scale * x_t

    for name, value in {"FIT_ITERATIONS": 1, "FIT_POOL": 8, "FIT_STEPS": 1}.items():
        monkeypatch.setattr(initialize, name, value)
    initialize.initialize("fit", distillation(data=Captioned()), Recording(), Recording)
    assert len(conditions) == 3 and all(condition is not None for condition in conditions)


def test_a_regressed_generator_sends_fresh_noise_where_the_ode_of_the_teacher_does(monkeypatch: Any) -> None:
    monkeypatch.setattr(initialize, "ODE_ITERATIONS", 200)
    start, regressed = (distillation(t_star=1.0, c_in="one", ode_pairs=n) for n in (0, 2000))
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        target = ode_sampler(start.teacher, start.path, 50).model(z)
        before, after = ((module.generator(z) - target).square().mean() for module in (start, regressed))
    assert after < 0.25 * before
    assert_close(
        regressed.start(z), regressed.generator(z)
    )  # what is measured as the start is what training starts from
    assert [sampler.weights for sampler in regressed.samplers()] == ["ema", "raw", "start", "teacher"]
    assert start.samplers()[2].weights == "teacher"
    with pytest.raises(ValueError, match="is for one step, and steps = 2"):
        distillation(steps=2, ode_pairs=1)


def test_regression_onto_the_ode_moves_the_adapters_of_the_generator_alone(monkeypatch: Any) -> None:
    monkeypatch.setattr(initialize, "ODE_ITERATIONS", 3)
    start = {"generator_init": "teacher", "online_init": "teacher", "adapters": LINEAR}
    fresh, regressed = (distillation(teacher=network(3), ode_pairs=n, **start) for n in (0, 8))
    assert_close(regressed.online.state_dict(), fresh.online.state_dict(), rtol=0, atol=0)
    moved = [
        name for name, p in regressed.generator.named_parameters() if not p.equal(fresh.generator.get_parameter(name))
    ]
    assert moved
    assert all(regressed.generator.get_parameter(name).requires_grad for name in moved)
