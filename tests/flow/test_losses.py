"""FGM's theorem by quadrature, and the algebra of its family.

A linear generator x_0 = a z + b and Gaussian data make every integrand quadratic in (z, eps), so that Gauss-Hermite
nodes give its mean exactly at each t, and gradients can be compared to rounding: no Monte Carlo.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fgm.flow import losses
from fgm.flow.analytic import gaussian
from fgm.flow.paths import ProbabilityPath

pytestmark = pytest.mark.usefixtures("float64")

Term = Callable[[Tensor, Tensor, Tensor], Tensor]
Weighting = Callable[[ProbabilityPath, Tensor], Tensor]
WEIGHTINGS = (losses.velocity_weight, losses.x_0_weight, losses.sid_dit_weight)
NARROW, WIDE, MIRRORED, DATA = (0.2, 0.3), (1.5, -1.0), (-1.0, 1.0), (0.5, 0.7)  # (a, b): std and mean


def quadrature(hermite: int, legendre: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes z, eps (n, 1) for N(0, 1) and t (n,) for (0, 1), with their weights (n,)."""
    normal, time = np.polynomial.hermite_e.hermegauss(hermite), np.polynomial.legendre.leggauss(legendre)
    nodes = normal[0], normal[0], (time[0] + 1) / 2
    z, eps, t = (torch.tensor(axis).flatten() for axis in np.meshgrid(*nodes, indexing="ij"))
    weight = torch.tensor(np.einsum("i,j,k->ijk", normal[1], normal[1], time[1])).flatten()
    return z[:, None], eps[:, None], t, weight / weight.sum()


Z, EPS, T, WEIGHT = quadrature(4, 8)


def velocities(path: ProbabilityPath, at: Tensor, live: bool) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and c at the nodes; v is v_theta, with (a, b) constant inside unless live."""
    a, b = at if live else at.detach()
    x_t, c = path.interpolate(at[0] * Z + at[1], EPS, T)
    u = gaussian(torch.tensor(DATA[1:]), torch.tensor(DATA[0])).velocity(x_t, T, path)
    return u, gaussian(b[None], a).velocity(x_t, T, path), c


def mean(
    path: ProbabilityPath, term: Term, at: Tensor, live: bool = False, w: Weighting = losses.velocity_weight
) -> Tensor:
    """E w(t) term(u, v, c); with term = l_1 and v live it is the loss that we want small, E|u - v_theta|^2."""
    return (WEIGHT * w(path, T) * term(*velocities(path, at, live))).sum()


def gradient(
    path: ProbabilityPath, term: Term, at: tuple[float, ...], live: bool = False, w: Weighting = WEIGHTINGS[0]
) -> Tensor:
    """Its derivative by (a, b)."""
    theta = torch.tensor(at, requires_grad=True)
    return torch.autograd.grad(mean(path, term, theta, live, w), theta)[0]


def l_1(u: Tensor, v: Tensor, c: Tensor) -> Tensor:
    return losses.fgm_terms(u, v, c)[0]


def l_2(u: Tensor, v: Tensor, c: Tensor) -> Tensor:
    return losses.fgm_terms(u, v, c)[1]


@pytest.mark.parametrize("w", WEIGHTINGS)
@pytest.mark.parametrize("at", [NARROW, WIDE, MIRRORED])
def test_l_1_plus_l_2_has_the_true_gradient(path: ProbabilityPath, at: tuple[float, float], w: Weighting) -> None:
    """Theorem 4.2: grad E w (L_1 + L_2), online weights fixed, is grad E w |u - v_theta|^2, for any w(t)."""
    truth = gradient(path, l_1, at, live=True, w=w)
    assert_close(gradient(path, losses.fgm, at, w=w), truth, rtol=0, atol=1e-8 * float(truth.norm()))


@pytest.mark.parametrize("term", [l_1, l_2])
@pytest.mark.parametrize("at", [NARROW, WIDE, MIRRORED])
def test_neither_term_alone_has_it(path: ProbabilityPath, at: tuple[float, float], term: Term) -> None:
    """grad E[L_1] and grad E[L_2] each miss the true gradient by more than a twentieth."""
    truth = gradient(path, l_1, at, live=True)
    assert (gradient(path, term, at) - truth).norm() > truth.norm() / 20


def test_a_step_down_l_1_alone_is_a_step_up(path: ProbabilityPath) -> None:
    """From a generator narrower than the data, -grad L_1 raises the true loss and -grad (L_1 + L_2) lowers it."""
    steps = (1e-3 * g / g.norm() for g in (gradient(path, l_1, NARROW), gradient(path, losses.fgm, NARROW)))
    after_l_1, after_both = (mean(path, l_1, torch.tensor(NARROW) - step) for step in steps)
    assert after_l_1 > mean(path, l_1, torch.tensor(NARROW)) > after_both


@pytest.mark.parametrize("term", [l_1, l_2])
def test_both_gradients_vanish_at_the_data(path: ProbabilityPath, term: Term) -> None:
    """Where the generator's law is the data's, grad E[L_1] = grad E[L_2] = 0."""
    assert gradient(path, term, DATA).norm() < 1e-12 * gradient(path, term, WIDE).norm()


def test_the_value_of_l_2_is_zero(path: ProbabilityPath) -> None:
    """With v = v_theta, E[L_2] = 0 wherever the generator is: the value of the loss is not progress."""
    theta = torch.tensor(WIDE)
    assert mean(path, l_2, theta).abs() < 1e-12 * mean(path, l_1, theta)


NONLINEAR = (torch.sin, lambda y: y**3 - 2 * y**2, lambda y: torch.exp(y / 2), lambda y: torch.exp(-(y**2) / 3))


@pytest.mark.parametrize("f", NONLINEAR, ids=["sin", "cubic", "exp", "bell"])
def test_the_flow_product_identity(path: ProbabilityPath, f: Callable[[Tensor], Tensor]) -> None:
    """Theorem 4.1: E[f(x_t) v_theta(x_t)] = E[f(x_t) c] for any f, here of the standardised x_t."""
    z, eps, t, weight = quadrature(60, 5)
    (a, b), k = torch.tensor(WIDE), path.at(t, z)
    x_t, c = path.interpolate(a * z + b, eps, t)
    f_t = f((x_t - k.alpha * b) / (k.alpha**2 * a**2 + k.sigma**2).sqrt())
    v = gaussian(b[None], a).velocity(x_t, t, path)
    assert_close(weight @ (f_t * v), weight @ (f_t * c), rtol=0, atol=1e-9 * float(weight @ (f_t * c).abs()))


def test_the_online_loss_regresses_on_v_theta(path: ProbabilityPath) -> None:
    """Pythagoras: E|u - c|^2 = E|u - v_theta|^2 + E|v_theta - c|^2, so that v_theta minimises flow matching."""
    u, v, c = velocities(path, torch.tensor(WIDE), live=False)
    excess = losses.flow_matching(u, c) - losses.flow_matching(v, c)
    assert_close(WEIGHT @ excess, WEIGHT @ losses.flow_matching(u, v))


@pytest.fixture
def fields() -> tuple[Tensor, Tensor, Tensor]:
    """Any u, v, c: the identities below ask for nothing."""
    u, v, c = torch.randn(3, 7, 2, 4, 4)
    return u, v, c


def test_the_loss_is_a_difference_of_squares(fields: tuple[Tensor, Tensor, Tensor]) -> None:
    """L_1 + L_2 = |u - c|^2 - |v - c|^2: flow matching of the teacher less that of the online net, per sample."""
    u, v, c = fields
    assert_close(losses.fgm(u, v, c), losses.flow_matching(u, c) - losses.flow_matching(v, c))
    assert losses.fgm(u, v, c).shape == (7,)


def test_online_velocity_mixed_into_the_teachers_is_a_member_of_the_family(
    fields: tuple[Tensor, Tensor, Tensor],
) -> None:
    (u, v, c), s = fields, 0.3
    assert_close(losses.fgm(torch.lerp(u, v, s), v, c, 0.7), (1 - s) * losses.fgm(u, v, c, 0.7 * (1 - s)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_is_a_member_of_the_family(path: ProbabilityPath, alpha: float) -> None:
    """2 SiD(alpha) = (sigma/kappa)^2 ((2 - 2 alpha) L_1 + L_2), SiD's integrand being between x_0-predictions."""
    (x_0, eps, u, v), t = torch.randn(4, 7, 2, 4, 4), torch.linspace(0.1, 0.9, 7)
    x_t, c = path.interpolate(x_0, eps, t)
    x_0_u, x_0_v = (path.x_0_from_velocity(x_t, field, t) for field in (u, v))
    sid = losses.inner(x_0_u - x_0_v, x_0_u - x_0 - alpha * (x_0_u - x_0_v))
    family = losses.fgm(u, v, c, 2 - 2 * alpha)
    assert_close(2 * sid, losses.x_0_weight(path, t) * family)


@pytest.mark.parametrize("lambda_1", [0.0, 1.0, -0.4])
def test_detached_teacher_lacks_the_gradient_through_its_input_alone(path: ProbabilityPath, lambda_1: float) -> None:
    """d loss / d u = 2 (lambda_1 (u - v) + v - c) / dim, and u = tanh(x_t) has the slope 1 - u^2 in x_t = alpha x_0 + ..."""
    x_0, eps, t = torch.randn(7, 6, requires_grad=True), torch.randn(7, 6), torch.linspace(0.1, 0.9, 7)
    x_t, c = path.interpolate(x_0, eps, t)
    u, v = torch.tanh(x_t), x_t**2
    whole, stopped = (
        torch.autograd.grad(losses.fgm(u, v, c, lambda_1, detach).sum(), x_0, retain_graph=True)[0]
        for detach in (False, "teacher")
    )
    assert_close(whole - stopped, path.at(t, x_0).alpha * (1 - u**2) * 2 * (lambda_1 * (u - v) + v - c) / 6)


@pytest.mark.parametrize("lambda_1", [0.0, 1.0])
def test_detached_networks_leave_the_dmd_direction(path: ProbabilityPath, lambda_1: float) -> None:
    """With detach, d loss / d x_0 = -2 alpha' (u - v) / dim, whatever lambda_1 and the networks' slopes."""
    x_0, eps, t = torch.randn(7, 6, requires_grad=True), torch.randn(7, 6), torch.linspace(0.1, 0.9, 7)
    x_t, c = path.interpolate(x_0, eps, t)
    u, v = torch.tanh(x_t), x_t**2
    loss = losses.fgm(u, v, c, lambda_1, detach=True).sum()
    assert_close(torch.autograd.grad(loss, x_0)[0], -2 * path.at(t, x_0).alpha_dot * (u - v).detach() / 6)


def test_weightings_in_closed_form(path: ProbabilityPath) -> None:
    """w |u - v|^2 is |u - v|^2, |x_0^u - x_0^v|^2 and (1 - t) |x_0^u - x_0^v|^2."""
    (x_t, u, v), t = torch.randn(3, 7, 6), torch.linspace(0.1, 0.9, 7)
    in_x_0 = losses.flow_matching(path.x_0_from_velocity(x_t, u, t), path.x_0_from_velocity(x_t, v, t))
    weighted = [w(path, t) * losses.flow_matching(u, v) for w in WEIGHTINGS]
    assert_close(weighted, [losses.flow_matching(u, v), in_x_0, (1 - t) * in_x_0])


def test_normalizers_in_closed_form(fields: tuple[Tensor, Tensor, Tensor]) -> None:
    """1, 1 / mean|x_0 - x_0^u| and 1 / |x_0^u - x_0^v|, floored, a constant per sample to autograd."""
    x_0, x_0_u, x_0_v = (field.requires_grad_() for field in fields)
    assert_close(losses.no_normalizer(x_0, x_0_u, x_0_v), torch.ones(7))
    assert_close(losses.dmd_normalizer(x_0, x_0_u, x_0_v), 1 / (x_0 - x_0_u).detach().abs().mean((1, 2, 3)))
    unit = losses.unit_normalizer(x_0, x_0_u, x_0_v)
    assert_close(unit, 32**0.5 / torch.linalg.vector_norm((x_0_u - x_0_v).detach(), dim=(1, 2, 3)))
    assert not losses.dmd_normalizer(x_0, x_0_u, x_0_v).requires_grad
    assert not unit.requires_grad
    assert_close(losses.dmd_normalizer(x_0, x_0, x_0_v), torch.full((7,), 1e5))
    assert_close(losses.dmd_normalizer(x_0, x_0, x_0_v, floor=0.1), torch.full((7,), 10.0))
    assert_close(losses.dmd_normalizer(x_0, x_0 + 0.2, x_0_v, floor=0.1), torch.full((7,), 5.0))
    assert_close(losses.unit_normalizer(x_0, x_0_v, x_0_v), torch.full((7,), 1e5))


def test_resolution_does_not_scale_the_loss(fields: tuple[Tensor, Tensor, Tensor]) -> None:
    """Repeating every pixel changes no value, since norms are means over dims."""
    finer = [field.repeat_interleave(2, 2).repeat_interleave(3, 3) for field in fields]
    assert_close(losses.fgm_terms(*finer), losses.fgm_terms(*fields))
    assert_close(losses.unit_normalizer(*finer), losses.unit_normalizer(*fields))
    assert_close(losses.dmd_normalizer(*finer), losses.dmd_normalizer(*fields))
