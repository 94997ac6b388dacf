"""What a distillation is said to hold is what it holds, and the arithmetic of Stable Diffusion 3 comes out."""

import pytest
import torch
from tiny_runs import Said, light

import fgm.memory
from fgm.benchmarks.footprint import activations_of, held, kept_for_backward, of_distillation, sd3_on_meta, size
from fgm.networks.dit import DiT


def test_weights_gradients_and_moments_are_those_of_real_networks() -> None:
    net = DiT(8, width=16, depth=2, num_classes=10)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(3, 1, 8, 8), torch.rand(3), torch.zeros(3, dtype=torch.int64)).square().sum().backward()
    optimizer.step()
    moments = size(s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    gradients = size(p.grad for p in net.parameters() if p.grad is not None)
    told = of_distillation(
        net.to("meta"),
        3,
        guided=False,
        online_guided=False,
        two_stage=False,
        half=False,
        copies=False,
        half_teacher=False,
    )
    assert (told.weights, told.gradients, told.optimizer) == (4 * held(net), gradients, 2 * moments)
    assert told.activations == 3 * (activations_of(net) + 2 * activations_of(net, trained=False))


def test_a_graph_on_the_meta_device_is_near_the_real_one_and_linear_in_the_batch() -> None:
    net = DiT(8, width=32, depth=2, num_classes=10)

    def real(n: int) -> int:
        x_t = torch.randn(n, 1, 8, 8, requires_grad=True)
        return kept_for_backward(lambda: net(x_t, torch.rand(n), torch.zeros(n, dtype=torch.int64)), net)

    eight = real(8)
    assert (real(16) - eight) == pytest.approx(eight, rel=0.05)
    assert 8 * activations_of(net.to("meta")) == pytest.approx(eight, rel=0.15)


def test_stable_diffusion_3_at_512_pixels_is_as_counted_by_hand() -> None:
    """2.03 billion weights; a graph of 2.14 GiB a sample in bf16."""
    net = sd3_on_meta(512, checkpointing=False, dual=False)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(2.028e9, rel=0.001)
    assert activations_of(net) / 2 / 2**30 == pytest.approx(2.14, rel=0.15)
    assert activations_of(net, trained=False) < 0.6 * activations_of(net)


def test_the_command_names_the_cards_that_hold_it(capsys: Said) -> None:
    fgm.memory.main(["experiment=digits_fgm"])
    assert "fits on RTX 3060" in capsys.readouterr().out
    fgm.memory.main(["experiment=sd3_fgm"])
    assert "B200" in capsys.readouterr().out
    fgm.memory.main(["experiment=sd3_fgm", "training.batch_size=256"])
    assert "fits on no card that is known" in capsys.readouterr().out


def test_what_is_not_counted_is_refused_at_once() -> None:
    assert "the memory of whole-network distillations alone is counted" in light(
        "memory", ["experiment=digits_teacher"]
    )
