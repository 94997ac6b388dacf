"""Generators of several steps: their times, whose gradient flows, and the exact law of their samples."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import network

from fgm.evaluation.sampling import balanced, draw_samples, generator_sampler
from fgm.flow.analytic import gaussian
from fgm.flow.paths import RectifiedPath
from fgm.networks import VelocityModel
from fgm.networks.analytic import GaussianMixtureVelocity
from fgm.networks.generator import FewStepGenerator

PATH, CPU = RectifiedPath(), torch.device("cpu")


def noises(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def net_x_0(net: VelocityModel, x_t: Tensor, time: float) -> Tensor:
    return x_t - time * net(x_t, torch.full((len(x_t),), time))


def test_times_of_four_steps_are_quarters_of_t_star() -> None:
    assert FewStepGenerator(network(), PATH, 1.0, steps=4).times == [1.0, 0.75, 0.5, 0.25]
    for steps in range(1, 9):
        assert FewStepGenerator(network(), PATH, 0.97, steps=steps).times[0] == 0.97


def test_first_step_of_several_has_the_bits_of_a_one_step_generator() -> None:
    net, z = network(), noises(8, 2)
    one, several = FewStepGenerator(net, PATH, 0.97), FewStepGenerator(net, PATH, 0.97, steps=4)
    assert (one.nfe, one.times) == (1, [0.97])
    assert torch.equal(several(z, None, torch.empty(8, 0, 2)), one(z))


def test_each_step_predicts_x_0_from_the_last_one_noised_afresh() -> None:
    """And gradient flows through the last step only."""
    net, z, eps = network(), noises(8, 2), noises(8, 2, 2)
    x_0 = net_x_0(net, 0.9 * z, 0.9)
    for time, noise in zip((0.6, 0.3), eps.unbind(1), strict=True):
        x_0 = net_x_0(net, (1 - time) * x_0.detach() + time * noise, time)
    ours = FewStepGenerator(net, PATH, 0.9, steps=3)(z, None, eps)
    assert_close(ours, x_0)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), list(net.parameters())) for x in (ours, x_0)), strict=True):
        assert_close(a, b)


def test_variance_of_exact_posterior_means_follows_its_recursion() -> None:
    """Data N(m, s^2): V_i = k_i^2 (alpha_i^2 V_{i-1} + t_i^2), k = alpha s^2 / (alpha^2 s^2 + t^2); V_1 = 0 at t=1."""
    std, n = 0.5, 100_000
    exact = GaussianMixtureVelocity(gaussian(torch.tensor([1.0, -2.0]), torch.tensor(std)), PATH)
    generator = FewStepGenerator(exact, PATH, 1.0, "one", steps=4)
    z, eps, variance = noises(n, 2), noises(4, n, 2)[1:].transpose(0, 1), 0.0
    for i, time in enumerate(generator.times):
        slope = (1 - time) * std**2 / ((1 - time) ** 2 * std**2 + time**2)
        variance = slope**2 * ((1 - time) ** 2 * variance + time**2)
        x_0 = generator(z, None, eps[:, :i])
        assert_close(x_0.mean(0), torch.tensor([1.0, -2.0]), atol=5e-3, rtol=0)
        assert_close(x_0.var(0), torch.full((2,), variance), atol=1e-3, rtol=0)


def test_missing_or_surplus_noise_is_rejected() -> None:
    generator = FewStepGenerator(network(), PATH, 0.9, steps=2)
    with pytest.raises(ValueError, match="up to 1 noises, but got none"):
        generator(noises(8, 2))
    with pytest.raises(ValueError, match="up to 1 noises, but got 2"):
        generator(noises(8, 2), None, noises(8, 2, 2))


def test_sample_depends_on_its_index_and_not_on_the_batch() -> None:
    source = generator_sampler(FewStepGenerator(network(), PATH, 0.9, steps=4), "ema")
    assert (source.nfe, source.name) == (4, "4 steps, ema")
    whole, parts = (draw_samples(source, 5, 10, (2,), balanced(0).conditions, CPU, batch)[0] for batch in (10, 3))
    assert_close(whole, parts)
    assert not torch.equal(whole, draw_samples(source, 6, 10, (2,), balanced(0).conditions, CPU)[0])
