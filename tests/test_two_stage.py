"""The two-stage backward has the gradient of the plain one, and never two networks' graphs at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fgm.flow import losses
from fgm.flow.paths import RectifiedPath
from fgm.networks.generator import FewStepGenerator
from fgm.networks.mlp import VelocityMLP
from fgm.training.memory import Branch, Loss, Outcome, plain, two_stage

PATH = RectifiedPath()
Backward = Callable[..., Outcome]


def network(seed: int) -> VelocityMLP:
    torch.manual_seed(seed)
    return VelocityMLP(dim=3, width=32, depth=3)


class Cycle:
    """Generator, teacher and online network, three separate nets, and one batch."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.generator = FewStepGenerator(network(1).to(dtype), PATH, 0.9)
        self.teacher, self.online = network(2).to(dtype), network(3).to(dtype)
        noise = torch.Generator().manual_seed(0)
        self.z, self.eps = (torch.randn(64, 3, generator=noise, dtype=dtype) for _ in range(2))
        self.t = 0.05 + 0.9 * torch.rand(64, generator=noise, dtype=dtype)

    def gradient(self, backward: Backward, loss: Loss) -> tuple[Outcome, list[Tensor]]:
        """The outcome, and the gradient of every weight of the generator."""
        x_t, c = PATH.interpolate(self.generator(self.z), self.eps, self.t)
        outcome = backward(x_t, c, Branch(self.teacher, self.t, None), Branch(self.online, self.t, None), loss)
        return outcome, list(torch.autograd.grad(outcome.root, list(self.generator.parameters())))


def objective(lambda_1: float = 1.0, detach: bool = False) -> Loss:
    def loss(u: Tensor, v: Tensor, c: Tensor) -> Tensor:
        return losses.fgm(u, v, c, lambda_1, detach).mean()

    return loss


@pytest.mark.parametrize("loss", [objective(), objective(0.0), objective(-0.4), objective(0.0, True)])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_gradient_is_the_plain_one(loss: Loss, dtype: torch.dtype, rtol: float) -> None:
    cycle = Cycle(dtype)
    expected, plain_gradient = cycle.gradient(plain, loss)
    outcome, gradient = cycle.gradient(two_stage, loss)
    for a, b in zip(outcome[:3], expected[:3], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(gradient, plain_gradient, strict=True):
        assert (a - b).norm() <= rtol * b.norm() and b.norm() > 0


def test_a_loss_that_reads_one_network_alone_has_its_gradient_too() -> None:
    cycle = Cycle(torch.float64)
    for loss in (lambda u, v, c: losses.flow_matching(u, c).mean(), lambda u, v, c: losses.squared_norm(v).mean()):
        (_, expected), (_, gradient) = cycle.gradient(plain, loss), cycle.gradient(two_stage, loss)
        for a, b in zip(gradient, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_no_weight_of_teacher_or_online_network_receives_a_gradient() -> None:
    cycle = Cycle(torch.float32)
    x_t, c = PATH.interpolate(cycle.generator(cycle.z), cycle.eps, cycle.t)
    branches = [Branch(net, cycle.t, None) for net in (cycle.teacher, cycle.online)]
    two_stage(x_t, c, *branches, objective()).root.backward()
    assert all(p.grad is None for net in (cycle.teacher, cycle.online) for p in net.parameters())
    assert all(p.grad is not None for p in cycle.generator.parameters())


class Counted:
    """A saved activation, counted from its packing to its release."""

    now = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Counted.now += 1
        Counted.peak = max(Counted.peak, Counted.now)

    def __del__(self) -> None:
        Counted.now -= 1


def peak(work: Callable[[], Tensor]) -> int:
    """The most activations at a time of what work builds and its backward takes apart."""
    Counted.now = Counted.peak = 0
    with saved_tensors_hooks(Counted, lambda counted: counted.tensor):
        work().backward()
    return Counted.peak


def test_the_graph_of_one_network_is_in_memory_at_a_time() -> None:
    """The peak of saved activations is one network's, not two's."""
    cycle, x = Cycle(torch.float32), torch.randn(4, 3, requires_grad=True)
    for net in (cycle.teacher, cycle.online):
        net.requires_grad_(False)
    x_t, c = (x.detach().requires_grad_() for x in PATH.interpolate(cycle.z, cycle.eps, cycle.t))
    branches = [Branch(net, cycle.t, None) for net in (cycle.teacher, cycle.online)]
    alone = peak(lambda: cycle.teacher(x, torch.full((4,), 0.5)).sum())
    assert peak(lambda: plain(x_t, c, *branches, objective()).root) >= 2 * alone
    assert peak(lambda: two_stage(x_t, c, *branches, objective()).root) <= alone + 12  # and what the loss itself saves


@pytest.mark.parametrize("backward", [plain, two_stage])
def test_the_value_is_the_loss_and_the_velocities_are_the_networks(backward: Backward) -> None:
    cycle = Cycle(torch.float64)
    x_t, c = PATH.interpolate(cycle.z, cycle.eps, cycle.t)
    branches = [Branch(net, cycle.t, None) for net in (cycle.teacher, cycle.online)]
    outcome = backward(x_t.requires_grad_(), c, *branches, objective())
    u, v = cycle.teacher(x_t, cycle.t), cycle.online(x_t, cycle.t)
    torch.testing.assert_close((outcome.u, outcome.v), (u, v))
    torch.testing.assert_close(outcome.loss, objective()(u, v, c))
