"""The U-Nets: what holds of them as velocities, their sizes, their types and layouts."""

import pytest
import torch
from hydra.utils import instantiate
from torch.testing import assert_close

from fgm.cli.config import compose_experiment
from fgm.networks.unet import UNet


def tiny(num_classes: int = 0) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(8, 2, 16, (1, 2), 1, (4,), 8, num_classes)
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return net


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 2, 8, 8, generator=generator), torch.rand(4, generator=generator), torch.arange(4) % 3


def test_velocity_of_a_new_unet_is_zero() -> None:
    x_t, t, _ = inputs()
    assert torch.equal(UNet(8, 2, 16, (1, 2), 1, (), 8)(x_t, t), torch.zeros_like(x_t))


def test_velocity_depends_on_class_and_none_is_the_null_class() -> None:
    net, (x_t, t, labels) = tiny(3), inputs()
    v, other, none = (net(x_t, t, y) for y in (labels, (labels + 1) % 3, None))
    assert (v - other).flatten(1).norm(dim=1).min() > 1e-3
    assert_close(none, net(x_t, t, net.unconditional(labels)))
    with pytest.raises(ValueError, match="no classes"):
        tiny()(x_t, t, labels)


def test_bf16_autocast_returns_float32_close_to_float32() -> None:
    """Under autocast the answer is float32 and near; and t moves it, although bf16 would round t away."""
    net, (x_t, t, _) = tiny(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        v, moved = net(x_t, t), net(x_t, t + 1e-3)
    exact = net(x_t, t)
    assert v.dtype == torch.float32 and (v - exact).norm() < 0.05 * exact.norm()
    assert (v - moved).norm() > 1e-2 * (net(x_t, t) - net(x_t, t + 1e-3)).norm() > 0


def test_weights_and_activations_are_channels_last() -> None:
    """Every convolution but diffusers' 1 x 1 shortcuts gets that layout; the output is contiguous."""
    net, (x_t, t, _), seen = tiny(), inputs(), []
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d) and "shortcut" not in name:
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(
                lambda m, given, _: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    assert net(x_t, t).is_contiguous() and all(seen) and len(seen) > 5


@pytest.mark.parametrize("options, message", [
    ({"size": 30}, "cannot be halved"),
    ({"size": 8, "given": 4}, "was given"),
    ({"size": 8, "head": 12}, "head 12 must divide"),
])  # fmt: skip
def test_wrong_sizes_are_rejected(options: dict, message: str) -> None:
    given = options.pop("given", 0)
    with pytest.raises(ValueError, match=message):
        UNet(**{"head": 8, **options}, width=16, multipliers=(1, 1, 1), attention=())(
            torch.zeros(1, 3, given, given), torch.ones(1)
        )


def test_unet_of_fashion_mnist_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        net = instantiate(compose_experiment("fashion_teacher", ["network=unet_fashion"])["network"])
    assert sum(p.numel() for p in net.parameters()) == 1_624_577
