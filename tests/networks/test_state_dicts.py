"""Names and shapes of weights are those of published and bundled checkpoints, and may not change."""

import json
from collections.abc import Callable
from hashlib import sha256

import pytest
import torch
from torch import nn

from fgm.flow.paths import RectifiedPath
from fgm.networks.dit import DiT
from fgm.networks.lora import LoRA
from fgm.networks.mlp import VelocityMLP
from fgm.networks.mmdit import CaptionedMMDiT
from fgm.networks.unet import UNet
from fgm.teachers.edm import untrained
from fgm.teachers.rectified_flow import RectifiedFlow

PATH = RectifiedPath()


def dit() -> DiT:
    return DiT(8, 1, 2, 32, 2, 4, 10)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (lambda: VelocityMLP(2, 32, 2, 3), "40b7092da10b"),
    "mlp of ReLU": (lambda: VelocityMLP(2, 32, 2, 3, "relu"), "40b7092da10b"),
    "dit": (dit, "4b51875c4b90"),
    "adapter": (lambda: LoRA(2, 4.0, ("qkv", "out")).networks(dit(), 7, ("generator",))[0], "7fcaa9e1d855"),
    "unet": (lambda: UNet(16, 3, 32, (1, 2), 1, (8,), 32, 10), "4bd88957df04"),
    "mmdit": (lambda: CaptionedMMDiT(16, width=32, depth=2), "07a1b2702755"),
    "ddpm++": (lambda: untrained("cifar10_ddpmpp", PATH, 10), "049f88878ad9"),
    "ncsn++": (lambda: untrained("cifar10_ncsnpp", PATH, 10), "7e4bdda7d5bd"),
    "adm": (lambda: untrained("imagenet64_adm", PATH, 10), "c3cb01cc51a7"),
    "edm2": (lambda: untrained("edm2_img64_xs", PATH, 10), "632120913600"),
    "rectified flow": (lambda: RectifiedFlow(16, 3, 32, (1, 2), 1, (8,)), "77b097218dd2"),
}


@pytest.mark.parametrize("build, digest", NETWORKS.values(), ids=NETWORKS.keys())
def test_state_dict_keeps_its_names_and_shapes(build: Callable[[], nn.Module], digest: str) -> None:
    with torch.device("cpu" if digest == NETWORKS["adapter"][1] else "meta"):
        entries = [(name, list(tensor.shape)) for name, tensor in build().state_dict().items()]
    assert sha256(json.dumps(entries).encode()).hexdigest()[:12] == digest
