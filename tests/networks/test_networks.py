"""Networks and their wrappers before any training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fgm.flow.analytic import gaussian, ring
from fgm.flow.paths import ProbabilityPath, RectifiedPath, TrigonometricPath
from fgm.flow.solvers import Euler, Heun, OdeSampler, Solver
from fgm.networks import VelocityModel
from fgm.networks.analytic import GaussianMixtureVelocity
from fgm.networks.dit import DiT
from fgm.networks.generator import FewStepGenerator, InputScale, input_scale
from fgm.networks.guidance import ClassifierFreeGuidance, apply_guidance
from fgm.networks.mlp import Activation, VelocityMLP

pytestmark = pytest.mark.usefixtures("float64")


def perturbed(net: VelocityModel) -> VelocityModel:
    """The network with noise on every weight, so that no zero of its initialisation hides a term."""
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return net


def small_dit() -> VelocityModel:
    return perturbed(DiT(size=4, channels=2, width=8, depth=2, heads=2, num_classes=3))


def small_mlp() -> VelocityModel:
    return perturbed(VelocityMLP(dim=2, width=8, depth=2, num_classes=3))


@pytest.fixture(params=[small_dit, small_mlp])
def net(request: pytest.FixtureRequest) -> VelocityModel:
    return request.param()


def inputs(net: VelocityModel, n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and labels."""
    return torch.randn(n, *net.shape), torch.rand(n), torch.arange(n) % 3


def calls(net: VelocityModel) -> list[int]:
    """A list that grows by the batch size at each call of net."""
    sizes: list[int] = []
    net.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    return sizes


def test_velocity_of_a_new_dit_is_zero() -> None:
    """adaLN-zero: v = 0 everywhere, but the gradient of its head is not."""
    net = DiT(size=4, channels=2, width=8, depth=2, heads=2, num_classes=3)
    v = net(*inputs(net))
    assert torch.equal(v, torch.zeros(6, 2, 4, 4))
    (slope,) = torch.autograd.grad((v - 1).square().sum(), net.head.bias)
    assert slope.abs().min() > 0


@pytest.mark.parametrize("build", [lambda: DiT(size=5), lambda: DiT(size=4, width=10, heads=4)])
def test_dit_rejects_sizes_that_do_not_divide(build: Callable) -> None:
    """patch must divide size, and heads must divide width."""
    with pytest.raises(ValueError, match="must divide"):
        build()


def test_velocity_depends_on_the_class(net: VelocityModel) -> None:
    """Another label, or none, changes every sample's velocity, and none is the label num_classes."""
    x_t, t, labels = inputs(net)
    v, other, null, none = (net(x_t, t, y) for y in (labels, (labels + 1) % 3, torch.full_like(labels, 3), None))
    assert (v - other).flatten(1).norm(dim=1).min() > 1e-3
    assert (v - none).flatten(1).norm(dim=1).min() > 1e-3
    assert_close(null, none)


def test_velocity_depends_on_time(net: VelocityModel) -> None:
    """Another t changes every sample's velocity."""
    x_t, t, labels = inputs(net)
    assert (net(x_t, t, labels) - net(x_t, 1 - t, labels)).flatten(1).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("activation, order", [("silu", 2), ("relu", 1)])
def test_a_relu_network_has_corners_and_a_silu_network_none(activation: Activation, order: int) -> None:
    """max|f(x + h) - 2 f(x) + f(x - h)| along a line shrinks like h at a corner, and like h^2 without one."""
    net = perturbed(VelocityMLP(width=16, depth=2, activation=activation))

    def largest_bend(points: int) -> Tensor:
        line = torch.linspace(-2, 2, points)[:, None] * torch.tensor([[1.0, 0.3]])
        with torch.no_grad():
            return net(line, torch.full((points,), 0.5)).diff(2, dim=0).abs().max()

    assert torch.log10(largest_bend(2001) / largest_bend(20001)) == pytest.approx(order, abs=0.2)


def test_samples_of_a_batch_are_independent(net: VelocityModel) -> None:
    """Permuting the batch permutes the output, and a part of the batch gives a part of it."""
    order, batch = torch.randperm(6), inputs(net)
    v = net(*batch)
    assert_close(net(*(x[order] for x in batch)), v[order])
    assert_close(net(*(x[:2] for x in batch)), v[:2])


def test_generator_at_t_star_1_is_one_euler_step(net: VelocityModel) -> None:
    """At t* = 1, c_in = one on the rectified path, g(z) is the teacher's ODE in one Euler step."""
    z, _, labels = inputs(net)
    generator = FewStepGenerator(net, RectifiedPath(), t_star=1.0, c_in="one")
    assert_close(generator(z, labels), OdeSampler(net, RectifiedPath(), 1)(z, labels))


@pytest.mark.parametrize("c_in", ["one", "t_star", "variance"])
@pytest.mark.parametrize("t_star", [0.3, 0.97])
def test_generator_is_the_x_0_prediction_of_its_network(path: ProbabilityPath, t_star: float, c_in: InputScale) -> None:
    """c_in z = alpha g + sigma eps, with g and eps the two readings of v(c_in z, t*)."""
    net, z, t = small_mlp(), torch.randn(6, 2), torch.full((6,), t_star)
    generator = FewStepGenerator(net, path, t_star, c_in)
    x, k = generator.c_in * z, path.at(t, z)
    v = net(x, t, None)
    assert_close(generator(z), path.x_0_from_velocity(x, v, t))
    assert_close(k.alpha * generator(z) + k.sigma * path.eps_from_velocity(x, v, t), x)


@pytest.mark.parametrize("t_star", [0.3, 0.97])
def test_generator_with_exact_velocity_is_the_posterior_mean(path: ProbabilityPath, t_star: float) -> None:
    """For N(m, s^2) data, g = E[x_0 | x] = m + alpha s^2 / (alpha^2 s^2 + sigma^2) (x - alpha m) at t*, x = c_in z."""
    m, s, z = torch.tensor([0.5, -1.0]), torch.tensor(0.6), torch.randn(6, 2)
    generator, k = (
        FewStepGenerator(GaussianMixtureVelocity(gaussian(m, s), path), path, t_star),
        path.at(torch.tensor(t_star), z),
    )
    gain = k.alpha * s**2 / (k.alpha**2 * s**2 + k.sigma**2)
    assert_close(generator(z), m + gain * (generator.c_in * z - k.alpha * m))


def test_input_scales(path: ProbabilityPath) -> None:
    """c_in is 1, sigma_t*, or the standard deviation of x_t* for data of standard deviation data_std."""
    k = path.coefficients(torch.tensor(0.7))
    scales = [input_scale(path, 0.7, "one", 0.4), input_scale(path, 0.7, "t_star", 0.4)]
    assert_close(torch.tensor(scales), torch.stack([torch.tensor(1.0), k.sigma]))
    assert_close(input_scale(path, 0.7, "variance", 0.4) ** 2, float(0.16 * k.alpha**2 + k.sigma**2))


@pytest.mark.parametrize("t_star", [0.0, 1.1])
def test_generator_rejects_times_outside_the_path(t_star: float) -> None:
    """0 < t* <= 1: at t = 0 there is no noise to start from."""
    with pytest.raises(ValueError, match="t_star"):
        FewStepGenerator(small_mlp(), RectifiedPath(), t_star)


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.4, 4.5])
def test_guidance_is_affine_in_its_scale(net: VelocityModel, scale: float) -> None:
    """v = (1 - scale) v_null + scale v_condition: 0 is the null class, 1 the net itself; no condition stays null."""
    x_t, t, labels = inputs(net)
    v, v_null = net(x_t, t, labels), net(x_t, t, None)
    assert_close(ClassifierFreeGuidance(net, scale)(x_t, t, labels), (1 - scale) * v_null + scale * v)
    assert_close(ClassifierFreeGuidance(net, scale)(x_t, t), v_null)


def test_guidance_takes_one_call(net: VelocityModel) -> None:
    """The network is called once on a doubled batch; a network without classes is rejected."""
    sizes = calls(net)
    ClassifierFreeGuidance(net, 2.0)(*inputs(net))
    assert sizes == [12]
    with pytest.raises(ValueError, match="num_classes"):
        ClassifierFreeGuidance(VelocityMLP(), 2.0)


def test_guidance_that_does_not_fit_is_rejected() -> None:
    with pytest.raises(ValueError, match="takes its scale from the teacher"):
        apply_guidance("long_and_short", small_mlp(), small_mlp())
    unknown: Any = "long"
    with pytest.raises(ValueError, match="guidance = long"):
        apply_guidance(unknown, small_mlp(), small_mlp())


@pytest.mark.parametrize(("solver", "steps"), [(Euler(), 1), (Euler(), 5), (Heun(), 5)])
def test_nfe_is_the_number_of_calls(net: VelocityModel, solver: Solver, steps: int) -> None:
    """nfe of an ODE sampler, and 1 of a generator, as counted; the trajectory ends at the sample."""
    path = TrigonometricPath()
    sampler, generator = OdeSampler(net, path, steps, solver), FewStepGenerator(net, path, 0.97)
    (z, _, labels), sizes = inputs(net), calls(net)
    x_0 = sampler(z, labels)
    assert len(sizes) == sampler.nfe
    generator(z, labels)
    assert (len(sizes), generator.nfe) == (sampler.nfe + 1, 1)
    assert torch.equal(sampler.trajectory(z, labels)[-1], x_0)


def test_gaussian_mixture_velocity_is_the_analytic_one(path: ProbabilityPath) -> None:
    """GaussianMixtureVelocity is the mixture's velocity, has no weights, and ignores its condition."""
    mixture, x_t, t = ring(5), torch.randn(6, 2), torch.linspace(0.1, 0.9, 6)
    net = GaussianMixtureVelocity(mixture, path)
    assert_close(net(x_t, t, torch.arange(6)), mixture.velocity(x_t, t, path))
    assert not list(net.parameters())
