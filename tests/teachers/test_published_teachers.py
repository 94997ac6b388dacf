"""Checkpoints of EDM, EDM2 and torchcfm load exactly, run no code, and become velocities on our paths."""

import pickle
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from official_files import Code
from published_files import GuidedUNet, guided_state, write_edm, write_edm2
from torch import Tensor, nn
from torch.testing import assert_close

from fgm.flow.analytic import gaussian
from fgm.flow.paths import (
    ProbabilityPath,
    RectifiedPath,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from fgm.networks.unet import UNet
from fgm.teachers import torchcfm
from fgm.teachers.edm import ARCHITECTURES, Architecture, EDMVelocity, untrained
from fgm.teachers.edm2 import EDM2UNet
from fgm.teachers.edm_checkpoints import pretrained
from fgm.teachers.edm_networks import DhariwalUNet, SongUNet
from fgm.teachers.torchcfm import TimeReversed
from fgm.utils.errors import UserError

PATHS = [RectifiedPath(), TrigonometricPath(), VariancePreservingPath(), VarianceExplodingPath()]
TINY: dict[str, tuple[Any, dict[str, Any]]] = {
    "SongUNet": (SongUNet, {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}),
    "NCSN++": (SongUNet, {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
                          "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
                          "resample_filter": [1, 3, 3, 1]}),
    "DhariwalUNet": (DhariwalUNet, {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1,
                                    "attn_resolutions": [4]}),
    "EDM2": (EDM2UNet, {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
                        "channels_per_head": 8}),
}  # fmt: skip


def perturbed(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return net


def tiny(kind: str, classes: int = 3) -> tuple[nn.Module, dict[str, Any]]:
    """A small network, rounded to float16 if its file is, and the arguments in its file."""
    make, options = TINY[kind]
    arguments = {"img_resolution": 8, "img_channels": 3, "label_dim": classes, **options}
    arguments |= {} if make is EDM2UNet else {"model_type": make.__name__}
    net = perturbed(make(8, 3, 3, classes, **options))
    return net.half().float() if make is EDM2UNet else net, arguments


def write(file: Path, model: nn.Module, **arguments: Any) -> None:
    """As EDM or EDM2 does, which writes float16."""
    (write_edm2 if isinstance(model, EDM2UNet) else write_edm)(file, model, **arguments)


def inputs(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.rand(n, generator=generator), torch.arange(n) % 3


class Exact(nn.Module):
    """The F whose D is the posterior mean of x_0 ~ N(mean, std^2), with EDM's own formula solved for it."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        s = (4 * noise).exp().reshape(-1, *[1] * (x.ndim - 1))
        r = (s**2 + 0.25).sqrt()
        y = r * x
        posterior = (self.std**2 * y + s**2 * self.mean) / (self.std**2 + s**2)
        return (posterior - 0.25 / r**2 * y) * r / (0.5 * s)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_velocity_of_an_exact_denoiser_is_the_closed_form(path: ProbabilityPath) -> None:
    net, data = EDMVelocity(Exact(0.3, 0.7), (2,), 0, path), gaussian(torch.full((2,), 0.3), torch.tensor(0.7))
    t = torch.linspace(0.05, 0.9, 19)
    x_t = torch.randn(19, 2, generator=torch.Generator().manual_seed(0))
    assert_close(net(x_t, t), data.velocity(x_t, t, path))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_velocity_is_right_at_both_ends_of_the_rectified_path(t: float) -> None:
    """At 0, v = E[eps] - x_0 = -x_0; at 1, v = eps - mean, up to F's range of noise, 0.002 to 80."""
    net = EDMVelocity(Exact(0.3, 0.7), (2,), 0, RectifiedPath())
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert_close(net(x, torch.full((5,), t)), -x if t == 0 else x - 0.3, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", TINY)
def test_checkpoint_roundtrip_is_bit_exact_and_runs_no_source(kind: str, tmp_path: Path) -> None:
    model, arguments = tiny(kind)
    write(tmp_path / "net.pkl", model, **arguments)
    x_t, t, labels = inputs()
    mine = EDMVelocity(model, (3, 8, 8), 3, RectifiedPath())
    theirs = pretrained(str(tmp_path / "net.pkl"), RectifiedPath())
    assert theirs.state_dict().keys() == mine.state_dict().keys() and theirs.num_classes == 3
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}
    assert torch.equal(theirs(x_t, t, labels), mine(x_t, t, labels))
    assert (theirs(x_t, t, labels) - theirs(x_t, t, (labels + 1) % 3)).abs().max() > 1e-4
    assert torch.equal(theirs(x_t, t), theirs(x_t, t, theirs.unconditional(labels)))


@pytest.mark.parametrize("kind", TINY)
def test_output_depends_on_noise_and_on_every_weight(kind: str) -> None:
    model, _ = tiny(kind)
    x_t, t, labels = inputs()
    net = EDMVelocity(model, (3, 8, 8), 3, RectifiedPath())
    net(x_t, t, labels).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    one_hot = nn.functional.one_hot(labels, 3).float()
    assert (model(x_t, t, one_hot) - model(x_t, t + 0.1, one_hot)).abs().max() > 1e-5


COUNTS = {("cifar10_ddpmpp", 0): 55_732_739, ("cifar10_ddpmpp", 10): 55_734_147, ("cifar10_ncsnpp", 0): 56_395_523,
          ("ffhq64_ddpmpp", 0): 61_804_419, ("imagenet64_adm", 1000): 295_899_267,
          ("edm2_img64_xs", 1000): 124_710_821, ("edm2_img64_s", 1000): 280_209_253,
          ("edm2_img64_m", 1000): 497_803_045, ("edm2_img64_l", 1000): 777_492_197,
          ("edm2_img64_xl", 1000): 1_119_276_709}  # fmt: skip


@pytest.mark.parametrize("name, classes", COUNTS)
def test_full_size_has_the_published_number_of_parameters(name: Any, classes: int) -> None:
    """55.7 million for DDPM++ on CIFAR-10 (arXiv 2509.22459, table 5); 296 million for ADM (EDM's own count).

    EDM2's README gives 238 MB for the file of size XS: float16, and MB of 2^20 bytes.
    """
    with torch.device("meta"):
        net = untrained(name, RectifiedPath(), classes)
    assert sum(p.numel() for p in net.parameters()) == COUNTS[name, classes]


def test_configs_can_name_every_architecture() -> None:
    assert set(get_args(Architecture)) == ARCHITECTURES.keys()


PUBLISHED = "edm-cifar10-32x32-uncond-vp.pkl"


def rewritten(**changes: Any) -> Callable[[Path], None]:
    model, arguments = tiny("SongUNet")
    return lambda file: write_edm(file, model, **arguments | changes)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (Path.unlink, "it comes from https"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-900]), "no complete pickle"),
    "another net": (rewritten(name="VPPrecond"), "is a VPPrecond of SongUNet; known are EDMPrecond"),
    "another size": (rewritten(num_blocks=2), "does not have the weights of its architecture"),
    "a size in words": (rewritten(img_resolution="many"), "does not have the weights of its architecture"),
    "unknown option": (rewritten(magnitude=True), "has magnitude, which is not known here"),
    "no network": (lambda file: file.write_bytes(pickle.dumps({"net": 1})), "under `ema`"),
}


@pytest.mark.parametrize("spoil, message", BAD.values(), ids=BAD.keys())
def test_bad_checkpoint_is_a_one_line_user_error(spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / PUBLISHED
    rewritten()(file)
    pretrained(str(file), PATHS[0])
    spoil(file)
    with pytest.raises(UserError) as error:
        pretrained(str(file), PATHS[0])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_code_in_a_checkpoint_is_an_error_and_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "net.pkl"
    code = Code(tmp_path / "ran")
    with_code = partial(write, file, *tiny("EDM2")[:1], **tiny("EDM2")[1], extra=code)
    for written in (lambda: file.write_bytes(pickle.dumps({"ema": code})), with_code):
        written()
        with pytest.raises(UserError, match="nothing in it was run"):
            pretrained(str(file), PATHS[0])
        assert not (tmp_path / "ran").exists()
    write_edm(file, *tiny("SongUNet")[:1], **tiny("SongUNet")[1])
    pretrained(str(file), PATHS[0], sha256(file.read_bytes()).hexdigest()[:12])
    with pytest.raises(UserError, match="is another file"):
        pretrained(str(file), PATHS[0], "0" * 64)


SHAPE = {"width": 16, "multipliers": (1, 2, 2), "blocks": 2, "attention": (4,), "size": 8}


@pytest.mark.parametrize("classes", [0, 3])
def test_torchcfm_velocity_is_their_network_with_time_reversed(classes: int, tmp_path: Path) -> None:
    state = guided_state(**SHAPE, classes=classes)
    torch.save({"ema_model": {f"module.{k}": v for k, v in state.items()}, "step": 400_000}, tmp_path / "cfm.pt")
    net = UNet(**SHAPE, head=8, num_classes=classes, time_scale=1.0)
    velocity = torchcfm.pretrained(str(tmp_path / "cfm.pt"), net)
    x_t, t, labels = inputs()
    y = labels if classes else None
    reference = GuidedUNet(state, groups=4, head=8)
    assert_close(velocity(x_t, t, y), -reference(1 - t, x_t, y), atol=1e-4, rtol=1e-4)
    assert isinstance(velocity, TimeReversed) and velocity.num_classes == classes


def test_bad_torchcfm_checkpoint_is_a_one_line_user_error(tmp_path: Path) -> None:
    file = tmp_path / "cfm.pt"
    torch.save({"ema_model": guided_state(**{**SHAPE, "blocks": 1})}, file)
    scalar = {"label_emb.weight": torch.tensor(1.0)}
    for content in (None, {"ema_model": Code(tmp_path / "ran")}, {"net_model": {}}, {"ema_model": scalar}):
        if content:
            torch.save(content, file)
        with pytest.raises(
            UserError, match=r"has no weights of this U-Net under ema_model|only tensors and plain"
        ) as error:
            torchcfm.pretrained(str(file), UNet(**SHAPE, head=8, time_scale=1.0))
        assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
