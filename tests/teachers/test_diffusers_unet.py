"""diffusers' U-Nets as velocities: exact for an exact prediction, loaded exactly, and bad directories."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from fgm.flow.analytic import gaussian
from fgm.flow.paths import ProbabilityPath, RectifiedPath, VariancePreservingPath
from fgm.networks.unet import UNet
from fgm.teachers import require_models
from fgm.teachers.diffusers_unet import DiffusersVelocity, pretrained, untrained
from fgm.utils.errors import UserError
from fgm.utils.pretrained import fingerprint, weight_files

LINEAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
COSINE = torch.cos(torch.linspace(0.02, 1.57, 300, dtype=torch.float64)) ** 2
MEAN, STD = 0.3, 0.7


class Exact(nn.Module):
    """What is predicted at step k, where x_0 ~ N(MEAN, STD^2), by the schedule itself."""

    def __init__(self, predicts: str, alpha_bar: Tensor) -> None:
        super().__init__()
        self.predicts, self.levels = predicts, (((1 - alpha_bar) / alpha_bar).log() / 2).float().double()
        self.config = SimpleNamespace(in_channels=1, sample_size=2, num_class_embeds=None)

    def forward(self, y: Tensor, k: Tensor, class_labels: Any, return_dict: bool) -> tuple[Tensor]:
        low = k.long().clamp(max=len(self.levels) - 2)
        level = torch.lerp(self.levels[low], self.levels[low + 1], k - low)[:, None, None, None]
        a = (1 + (2 * level).exp()).rsqrt()
        s = (1 - a**2).sqrt()
        x_0 = (STD**2 * a * y + s**2 * MEAN) / (a**2 * STD**2 + s**2)
        eps = (y - a * x_0) / s
        return ({"epsilon": eps, "sample": x_0, "v_prediction": a * eps - s * x_0}[self.predicts],)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("alpha_bar", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_velocity_of_an_exact_prediction_is_the_closed_form(
    predicts: Any, alpha_bar: Tensor, path: ProbabilityPath
) -> None:
    net = DiffusersVelocity(Exact(predicts, alpha_bar), path, predicts, alpha_bar)
    t = torch.linspace(0.05, 0.9, 19)
    x_t = torch.randn(19, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    data = gaussian(torch.full((4,), MEAN), torch.tensor(STD))
    expected = data.velocity(x_t.flatten(1), t, path).reshape(x_t.shape)
    assert_close(net(x_t, t), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_ends_of_the_rectified_path_are_right_up_to_the_ends_of_the_schedule() -> None:
    """At 0, v = -x_0, plus s times the score where s/a is least, 0.01; at 1, v = eps - mean, where s/a is most, 157."""
    net = DiffusersVelocity(Exact("epsilon", LINEAR), RectifiedPath(), "epsilon", LINEAR)
    x = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    at_data, at_noise = (net(x, torch.full((50,), t)) for t in (0.0, 1.0))
    assert ((at_data + x).abs() <= 0.0101 * ((x - MEAN).abs() / STD**2 + x.abs())).all()
    assert ((at_noise - (x - MEAN)).abs() <= (STD**2 * x.abs() + MEAN) / 157).all()


def tiny(classes: int = 0) -> Any:
    from diffusers import UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=8, norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=classes or None,
        )  # fmt: skip


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.rand(4, generator=generator), torch.arange(4) % 3


def pipeline(directory: Path, **scheduler: Any) -> Any:
    """A DDPM pipeline's directory, as diffusers writes it, and its network."""
    from diffusers import DDPMPipeline, DDPMScheduler

    net = tiny()
    DDPMPipeline(net, DDPMScheduler(num_train_timesteps=100, **scheduler)).save_pretrained(directory)
    return net


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_pipeline_is_read_as_its_scheduler_says(predicts: Any, tmp_path: Path) -> None:
    net = pipeline(tmp_path, prediction_type=predicts)
    assert (tmp_path / "unet" / "config.json").is_file() and (tmp_path / "scheduler").is_dir()
    x_t, t, _ = inputs()
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100), 0)
    theirs, mine = (
        pretrained(str(tmp_path), RectifiedPath()),
        DiffusersVelocity(net, RectifiedPath(), predicts, alpha_bar),
    )
    assert theirs.predicts == predicts and theirs.shape == (3, 8, 8)
    assert_close(theirs(x_t, t), mine(x_t, t), atol=1e-4, rtol=1e-4)
    other = DiffusersVelocity(net, RectifiedPath(), "sample", alpha_bar)
    assert (theirs(x_t, t) - other(x_t, t)).abs().max() > 0.1


@pytest.mark.parametrize("classes", [0, 3])
def test_flow_network_is_called_at_1000_t(classes: int, tmp_path: Path) -> None:
    net = tiny(classes)
    net.save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    x_t, t, labels = inputs()
    y = labels if classes else None
    velocity = pretrained(str(tmp_path), RectifiedPath())
    assert velocity.predicts == "velocity" and velocity.num_classes == classes
    assert_close(velocity(x_t, t, y), net(x_t, 1000 * t, class_labels=y).sample)
    new = untrained(str(tmp_path), RectifiedPath())
    assert new.state_dict().keys() == velocity.state_dict().keys() == {f"net.{k}" for k in net.state_dict()}
    with pytest.raises(ValueError, match="null class"):
        velocity(x_t, t, None if classes else labels)
    with pytest.raises(ValueError, match="null class"):
        velocity.unconditional(labels)


def test_our_unet_loads_from_a_diffusers_directory(tmp_path: Path) -> None:
    ours = UNet(8, 3, 16, (1, 2), 1, (4,), 8)
    nn.init.normal_(ours.net.conv_out.weight, generator=torch.Generator().manual_seed(0))
    ours.net.save_pretrained(tmp_path)
    x_t, t, _ = inputs()
    assert_close(pretrained(str(tmp_path), RectifiedPath(), "velocity")(x_t, t), ours(x_t, t))


def test_other_fingerprint_is_a_user_error(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    mark = fingerprint(weight_files(tmp_path))
    pretrained(str(tmp_path), RectifiedPath(), "velocity", mark[:6])
    with pytest.raises(UserError, match="these are other weights"):
        pretrained(str(tmp_path), RectifiedPath(), "velocity", "0" * 8)


def other_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))


def pickled(folder: Path) -> None:
    """As diffusers wrote weights before safetensors: a pickle, which is not opened."""
    (file,) = weight_files(folder)
    torch.save(load_file(file), folder / "diffusion_pytorch_model.bin")
    file.unlink()


def cut(folder: Path) -> None:
    (file,) = weight_files(folder)
    file.write_bytes(file.read_bytes()[:-100])


BAD: dict[str, tuple[Any, str]] = {
    "no directory": (lambda d: (d / "config.json").unlink(), "no config.json and diffusion_pytorch_model.safetensors"),
    "a pickle": (pickled, "no config.json and diffusion_pytorch_model.safetensors"),
    "another network": (other_class, "is of a UNet2DConditionModel, but a UNet2DModel is needed"),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), "not JSON"),
    "cut short": (cut, "does not load"),
    "no scheduler": (lambda d: None, "no scheduler_config.json says what it predicts"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD.keys())
def test_bad_directory_is_a_one_line_user_error(change: Any, message: str, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as error:
        pretrained(str(tmp_path), RectifiedPath())
    assert message in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_config_check_finds_missing_directory_and_flow_needs_rectified_path(tmp_path: Path) -> None:
    node = {"teacher": {"_target_": "fgm.teachers.diffusers_unet.pretrained", "directory": str(tmp_path)}}
    with pytest.raises(UserError, match="run hf download"):
        require_models(node)
    tiny().save_pretrained(tmp_path)
    require_models(node)
    with pytest.raises(ValueError, match="use path=rectified"):
        pretrained(str(tmp_path), VariancePreservingPath(), "velocity")
    with pytest.raises(UserError, match="has its betas"):
        pretrained(str(tmp_path), RectifiedPath(), "epsilon")
