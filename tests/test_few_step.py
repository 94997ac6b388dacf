"""Generators of several steps: their times, whose gradient flows, and what they begin with."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import SCHEDULE, distillation, network, same_bits, whole_and_resumed

from fgm.evaluation.conditioning import balanced
from fgm.evaluation.sampling import draw_samples, generator_sampler
from fgm.flow.analytic import gaussian
from fgm.flow.paths import RectifiedPath
from fgm.networks import VelocityModel
from fgm.networks.analytic import GaussianMixtureVelocity
from fgm.networks.generator import FewStepGenerator
from fgm.training.distillation import Distillation

PATH, CPU = RectifiedPath(), torch.device("cpu")


def noises(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_four_steps_from_one_are_read_at_quarters_and_start_at_t_star() -> None:
    assert FewStepGenerator(network(), PATH, 1.0, steps=4).times == [1.0, 0.75, 0.5, 0.25]
    for steps in range(1, 9):
        assert FewStepGenerator(network(), PATH, 0.97, steps=steps).times[0] == 0.97


def test_the_first_step_of_several_has_the_bits_of_one() -> None:
    net, z = network(), noises(8, 2)
    one, several = FewStepGenerator(net, PATH, 0.97), FewStepGenerator(net, PATH, 0.97, steps=4)
    assert (one.nfe, one.times) == (1, [0.97])
    assert torch.equal(several(z, None, torch.empty(0, 8, 2)), one(z))


def test_each_step_predicts_x_0_from_the_last_one_noised_afresh() -> None:
    net, z, eps = network(), noises(8, 2), noises(2, 8, 2)
    x_0 = net_x_0(net, 0.9 * z, 0.9)
    for time, noise in zip((0.6, 0.3), eps, strict=True):
        x_0 = net_x_0(net, (1 - time) * x_0 + time * noise, time)
    assert_close(FewStepGenerator(net, PATH, 0.9, steps=3)(z, None, eps), x_0)


def net_x_0(net: VelocityModel, x_t: Tensor, time: float) -> Tensor:
    return x_t - time * net(x_t, torch.full((len(x_t),), time))


def test_gradient_flows_through_the_last_step_alone() -> None:
    net, z, eps = network(), noises(8, 2), noises(2, 8, 2)
    generator = FewStepGenerator(net, PATH, 0.9, steps=3)
    with torch.no_grad():
        x_0 = generator(z, None, eps[:1])
    expected = net_x_0(net, (1 - 0.3) * x_0 + 0.3 * eps[1], generator.times[2]).square().sum()
    value = generator(z, None, eps).square().sum()
    parameters = list(net.parameters())
    for a, b in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert_close(a, b)


def test_the_variance_of_exact_posterior_means_follows_its_recursion() -> None:
    """Data N(m, s^2): V_i = k_i^2 (alpha_i^2 V_{i-1} + t_i^2), k = alpha s^2 / (alpha^2 s^2 + t^2); V_1 = 0 at t=1."""
    std, n = 0.5, 100_000
    exact = GaussianMixtureVelocity(gaussian(torch.tensor([1.0, -2.0]), torch.tensor(std)), PATH)
    generator = FewStepGenerator(exact, PATH, 1.0, "one", steps=4)
    z, eps, variance = noises(n, 2), noises(4, n, 2)[1:], 0.0
    for i, time in enumerate(generator.times):
        slope = (1 - time) * std**2 / ((1 - time) ** 2 * std**2 + time**2)
        variance = slope**2 * ((1 - time) ** 2 * variance + time**2)
        x_0 = generator(z, None, eps[:i])
        assert_close(x_0.mean(0), torch.tensor([1.0, -2.0]), atol=5e-3, rtol=0)
        assert_close(x_0.var(0), torch.full((2,), variance), atol=1e-3, rtol=0)


def test_missing_or_surplus_noises_are_refused() -> None:
    generator = FewStepGenerator(network(), PATH, 0.9, steps=2)
    with pytest.raises(ValueError, match="up to 1 noises, but got none"):
        generator(noises(8, 2))
    with pytest.raises(ValueError, match="up to 1 noises, but got 2"):
        generator(noises(8, 2), None, noises(2, 8, 2))


def test_a_sample_depends_on_its_index_alone() -> None:
    source = generator_sampler(FewStepGenerator(network(), PATH, 0.9, steps=4), "ema")
    assert (source.nfe, source.name) == (4, "4 steps, ema")
    whole, parts = (draw_samples(source, 5, 10, (2,), balanced(0).conditions, CPU, batch)[0] for batch in (10, 3))
    assert_close(whole, parts)
    assert not torch.equal(whole, draw_samples(source, 6, 10, (2,), balanced(0).conditions, CPU)[0])


def test_the_trained_step_is_drawn_evenly_and_is_the_same_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(rank: int) -> tuple[list[int], Tensor]:
        module = distillation(steps=4)
        monkeypatch.setattr(Distillation, "global_rank", rank)
        eps = [module.renoising(noises(8, 2), cycle) for cycle in range(200)]
        return [len(e) for e in eps if e is not None], torch.cat([e for e in eps if e is not None])

    (counts, eps), (others, other_eps) = drawn(0), drawn(1)
    assert counts == others and not torch.equal(eps, other_eps)
    assert len(counts) == 200 and all(30 < counts.count(k) < 70 for k in range(4))


def test_four_steps_train_resume_and_are_measured_at_four_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = whole_and_resumed(lambda: distillation(steps=4), tmp_path, monkeypatch)
    assert int(resumed.cycle) == SCHEDULE.cycles and same_bits(whole, resumed)
    assert [(s.nfe, s.weights) for s in whole.sources()] == [(4, "ema"), (4, "raw"), (4, "start"), (50, "teacher")]
