"""EDM2's network computes the paper's figure, preserves magnitudes, and keeps the rows of its weights at unit length."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d
from torch.testing import assert_close

from fgm.data.images import Digits
from fgm.flow.paths import RectifiedPath
from fgm.flow.times import Uniform
from fgm.teachers.edm import EDMVelocity
from fgm.teachers.edm2 import EDM2UNet, MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from fgm.training.config import TrainingConfig
from fgm.training.distillation import Distillation
from fgm.training.optim import adam, constrain, keep_constrained

SHAPE = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8}


def tiny(classes: int = 3, channels: int = 3) -> EDM2UNet:
    """Weights away from their initial zeros; rows of various lengths, as in averages."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = EDM2UNet(8, channels, channels, classes, **SHAPE)  # type: ignore[arg-type]
        for weight in model.parameters():
            weight.mul_(0.5 + torch.rand(weight.shape[:1])[(...,) + (None,) * (weight.ndim - 1)]) if weight.ndim else (
                weight.fill_(0.7)
            )
    return model


def inputs(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.rand(n, generator=generator), torch.arange(n) % 3


class Reference:
    """The paper's figure 21 from a state dict alone: names as in the file, one line for each box."""

    def __init__(self, state: dict[str, Tensor], levels: int, head: int) -> None:
        self.state, self.levels, self.head = state, levels, head

    def mp(self, name: str, x: Tensor, gain: Any = 1.0) -> Tensor:
        w = self.state[f"{name}.weight"]
        rows = w.flatten(1)
        rows = rows / (1e-4 + rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5) * gain / rows.shape[1] ** 0.5
        return x @ rows.T if w.ndim == 2 else conv2d(x, rows.reshape(w.shape), padding=w.shape[-1] // 2)

    def sum(self, a: Tensor, b: Tensor, t: float) -> Tensor:
        return a.lerp(b, t) / ((1 - t) ** 2 + t**2) ** 0.5

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        f = torch.full((x.shape[1], 1, 2, 2), 0.25)
        x = conv2d(x, f, groups=x.shape[1], stride=2) if name.endswith("down") else x
        x = conv_transpose2d(x, 4 * f, groups=x.shape[1], stride=2) if name.endswith("up") else x
        skip, encoder = f"{name}.conv_skip", name.startswith("enc")
        shortcut = (lambda x: self.mp(skip, x)) if f"{skip}.weight" in self.state else (lambda x: x)
        x = shortcut(x) if encoder else x
        x = x / (1e-4 + x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5) if encoder else x
        c = self.mp(f"{name}.emb_linear", emb, self.state[f"{name}.emb_gain"]) + 1
        y = self.mp(f"{name}.conv_res0", nn.functional.silu(x) / 0.596) * c[:, :, None, None]
        y = self.mp(f"{name}.conv_res1", nn.functional.silu(y) / 0.596)
        x = self.sum(x if encoder else shortcut(x), y, 0.3)
        if f"{name}.attn_qkv.weight" in self.state:
            y = self.mp(f"{name}.attn_qkv", x)
            y = y.reshape(len(y), -1, self.head, 3, y.shape[2] * y.shape[3])
            q, k, v = (y / (1e-4 + y.norm(dim=2, keepdim=True) / self.head**0.5)).unbind(3)
            w = torch.einsum("nhcq,nhck->nhqk", q, k / self.head**0.5).softmax(3)
            y = torch.einsum("nhqk,nhck->nhcq", w, v).reshape(x.shape)
            x = self.sum(x, self.mp(f"{name}.attn_proj", y), 0.3)
        return x.clip(-256, 256)

    def __call__(self, x: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        wave = (noise.ger(self.state["emb_fourier.freqs"]) + self.state["emb_fourier.phases"]).cos() * 2**0.5
        emb = self.sum(self.mp("emb_noise", wave), self.mp("emb_label", labels * labels.shape[1] ** 0.5), 0.5)
        emb, x, skips = nn.functional.silu(emb) / 0.596, torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for name in dict.fromkeys(".".join(key.split(".")[:2]) for key in self.state if key.startswith("enc")):
            x = self.mp(name, x) if name.endswith("conv") else self.block(name, x, emb)
            skips.append(x)
        for name in dict.fromkeys(".".join(key.split(".")[:2]) for key in self.state if key.startswith("dec")):
            if "block" in name:
                skip = skips.pop()
                a, b = x.shape[1], skip.shape[1]
                c = ((a + b) / 0.5) ** 0.5
                x = torch.cat([c / a**0.5 * 0.5 * x, c / b**0.5 * 0.5 * skip], 1)
            x = self.block(name, x, emb)
        return self.mp("out_conv", x, self.state["out_gain"])


def test_network_computes_the_papers_figure() -> None:
    model, (x, t, y) = tiny(), inputs()
    labels = nn.functional.one_hot(y, 3).float()
    assert_close(model(x, t, labels), Reference(model.state_dict(), 2, 8)(x, t, labels), atol=1e-5, rtol=1e-5)


N = 200_000


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


MAGNITUDES = {
    "silu": lambda: mp_silu(normal(N)),
    "sum": lambda: mp_sum(normal(2, N)[0], normal(2, N)[1], 0.3),
    "cat": lambda: mp_cat(normal(N, 3), normal(N, 7)[:, :5], 0.5),
    "cat, uneven": lambda: mp_cat(normal(N, 3), normal(N, 7)[:, :5], 0.2),
    "linear": lambda: MPConv(300, 200)(3 * normal(N // 200, 900).reshape(-1, 300) / 3),
    "waves": lambda: MPFourier(2000)(normal(100)),
}


@pytest.mark.parametrize("output", MAGNITUDES.values(), ids=MAGNITUDES.keys())
def test_layer_preserves_magnitude_of_normal_input(output: Any) -> None:
    """rms 1 in, rms 1 out, whatever the lengths of the rows; its error here is at most about a hundredth."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert output().square().mean().sqrt().item() == pytest.approx(1, abs=0.015)


def test_length_of_a_row_changes_no_output_and_gradient_is_orthogonal_to_it() -> None:
    layer, x = MPConv(30, 20), normal(16, 30)
    before = layer(x)
    before.square().mul(normal(16, 20)).sum().backward()
    along = (layer.weight * layer.weight.grad).sum(1) / layer.weight.norm(dim=1) / layer.weight.grad.norm(dim=1)
    assert along.abs().max() < 1e-3
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.5, 3, 20)[:, None])
    assert_close(layer(x), before, rtol=1e-3, atol=1e-4)  # the 1e-4 beside the length


def rms_of_rows(net: nn.Module) -> Tensor:
    layers = [m for m in net.modules() if isinstance(m, MPConv)]
    return torch.cat([layer.weight.flatten(1).square().mean(1).sqrt() for layer in layers])  # type: ignore[operator]


def test_normalising_after_each_update_equals_normalising_before_the_next() -> None:
    """EDM2 writes unit rows in each forward pass of training (eq. 66); the weights that gradients see are the same."""
    ours = MPConv(12, 5)
    theirs, x = deepcopy(ours), normal(8, 12)
    constrain(ours)
    optimizers = keep_constrained(adam(ours, 1e-2), ours), adam(theirs, 1e-2)
    for _ in range(5):
        constrain(theirs)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).pow(3).sum().backward()
            optimizer.step()
    constrain(theirs)
    assert torch.equal(ours.weight, theirs.weight)
    assert_close(rms_of_rows(ours), torch.ones(5), atol=2e-4, rtol=0)


def test_copies_of_a_teacher_keep_unit_rows_and_the_teacher_keeps_its_own() -> None:
    teacher = EDMVelocity(tiny(10, 1), (1, 8, 8), 10, RectifiedPath())
    before_training = deepcopy(teacher.state_dict())
    assert 0.25 < rms_of_rows(teacher).min() < 0.6
    config = TrainingConfig(max_steps=3, batch_size=4, lr_decay_fraction=0.0)
    make = partial(adam, lr=1e-2)
    module = Distillation(teacher, Digits(), RectifiedPath(), Uniform(), make, config, t_star=0.7)
    x, t, y = normal(4, 1, 8, 8), torch.rand(4), torch.arange(4)
    generator_optimizer = module.configure_optimizers()[0]["optimizer"]
    for net in (module.generator.net, module.online):
        assert_close(rms_of_rows(net), torch.ones(len(rms_of_rows(net))), atol=4e-4, rtol=0)  # 1e-4 of a quarter
        assert_close(net(x, t, y), teacher(x, t, y), atol=2e-3, rtol=0)
    before = deepcopy(module.generator.net.state_dict())
    module.generator.net(x, t, y).square().sum().backward()
    generator_optimizer.step()
    assert any(not torch.equal(before[k], w) for k, w in module.generator.net.state_dict().items())
    assert_close(rms_of_rows(module.generator.net), torch.ones(len(rms_of_rows(teacher))), atol=2e-4, rtol=0)
    assert all(torch.equal(before_training[k], w) for k, w in teacher.state_dict().items())


def test_bf16_autocast_returns_float32_close_to_float32_arithmetic() -> None:
    """Under autocast the answer is float32 and near, and the time still counts."""
    net, (x_t, t, y) = EDMVelocity(tiny(), (3, 8, 8), 3, RectifiedPath()), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        v, moved = net(x_t, t, y), net(x_t, t + 1e-3, y)
    exact = net(x_t, t, y)
    assert v.dtype == torch.float32 and (v - exact).norm() < 0.05 * exact.norm() and not torch.equal(v, moved)
