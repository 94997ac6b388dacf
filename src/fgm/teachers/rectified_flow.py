"""Rectified flow's CIFAR-10 checkpoints (Liu et al., arXiv 2209.03003; gnobitab/RectifiedFlow) as velocities.

Their time runs from noise at 0 to data at 1 and enters the network as 999 t, so v(x, t) = -net(x, 999 (1 - t)), on the
rectified path. Their network is score_sde's DDPM++ (Song et al., arXiv 2011.13456) with BigGAN's blocks and no FIR
filter, which EDM's SongUNet computes as well: the weights get other names, and the three matrices of attention become
one. Their other networks are rejected, since they are no DDPM++: at 256 pixels it is NCSN++ with FIR filters and a
pyramid of outputs. Their network is a plain list of modules in the order of ours:

    all_modules.0, .1               map_layer0, map_layer1
    all_modules.i, i from 2         the entries of enc and dec; a block with attention is two modules of theirs

The file is torch.save's of {"optimizer", "model": state dict, "ema": {"shadow_params": list}, "step"}, read with
weights_only; the averages are a list in the order of the model's parameters.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fgm.flow.paths import RectifiedPath
from fgm.networks import VelocityModel, class_labels, require_shape
from fgm.teachers.edm_networks import SongUNet, UNetBlock
from fgm.utils.errors import UserError, last_line
from fgm.utils.pickles import UNREADABLE, read_checkpoint, require_finite
from fgm.utils.pretrained import require_checkpoint
from fgm.utils.validation import validated

BLOCK = {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1", "Conv_1": "conv1",
         "Conv_2": "skip"}  # fmt: skip


@validated
class RectifiedFlow(VelocityModel):
    """The velocity of images x_t (b, channels, size, size), without classes.

    Args:
        size, channels: of the image.
        width, multipliers, blocks, attention: of the U-Net, see SongUNet; the defaults are CIFAR-10's.
    """

    takes_prompts, path = False, RectifiedPath()

    def __init__(
        self,
        size: PositiveInt = 32,
        channels: PositiveInt = 3,
        width: Annotated[int, Field(ge=4)] = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: PositiveInt = 4,
        attention: Sequence[int] = (16,),
    ) -> None:
        super().__init__()
        self.shape, self.num_classes = (channels, size, size), 0
        self.net = SongUNet(size, channels, channels, 0, width, multipliers, 4, blocks, attention)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        return -self.net(x_t, 999.0 * (1 - t), class_labels(self, x_t, condition)).to(x_t.dtype)


@validated
def pretrained(
    checkpoint: str, network: RectifiedFlow, weights: Literal["ema", "model"] = "ema", sha256: str | None = None
) -> RectifiedFlow:
    """Load a checkpoint of RectifiedFlow's training.

    Args:
        checkpoint: the file.
        network: a new one of its size.
        weights: the average, or the last ones.
        sha256: the beginning of the file's sha256; None checks nothing.

    Raises:
        UserError: the file is missing, has more than tensors in it, or weights of another architecture.
    """
    file = require_checkpoint(checkpoint, sha256)
    content = read_checkpoint(file)
    try:
        state = {n.removeprefix("module."): w for n, w in content["model"].items() if not n.endswith("sigmas")}
        if weights == "ema":
            state = dict(zip(state, content["ema"]["shadow_params"], strict=True))
        require_finite(state, file)
        network.net.load_state_dict(convert_state_dict(state, network.net))
    except UNREADABLE as error:
        raise UserError(
            f"{file}: has no DDPM++ of this size under {weights}, the only network of theirs that is supported "
            f"({last_line(error)})"
        ) from error
    return network


def convert_state_dict(state: dict[str, Tensor], net: SongUNet) -> dict[str, Tensor]:
    """Return their weights under our names, and our own filters.

    Raises:
        LookupError, ValueError: it is the state dict of another architecture.
    """
    theirs: dict[str, dict[str, Tensor]] = defaultdict(dict)  # by all_modules.i, then by the rest of the name
    for name, tensor in state.items():
        root, number, rest = name.split(".", 2)
        theirs[f"{root}.{number}"][rest] = tensor
    converted = {name: tensor for name, tensor in net.state_dict().items() if name.endswith("resample_filter")}
    for i, (name, kind) in enumerate(module_names(net)):
        module = theirs.pop(f"all_modules.{i}")
        if kind == "attention":
            converted |= convert_attention(name, module)
            continue
        for key, tensor in module.items():
            layer, _, parameter = key.rpartition(".")
            converted[f"{name}.{BLOCK[layer]}.{parameter}" if kind == "block" else f"{name}.{key}"] = tensor
    if theirs:
        raise ValueError(f"{next(iter(theirs))} has no counterpart")
    return converted


def module_names(net: SongUNet) -> Iterator[tuple[str, Literal["layer", "block", "attention"]]]:
    """Yield our name and the kind of each of their modules."""
    yield "map_layer0", "layer"
    yield "map_layer1", "layer"
    for part in ("enc", "dec"):
        for name, layer in net.get_submodule(part).named_children():
            yield f"{part}.{name}", "block" if isinstance(layer, UNetBlock) else "layer"
            if isinstance(layer, UNetBlock) and layer.heads:
                yield f"{part}.{name}", "attention"


def convert_attention(name: str, module: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their W is (inputs, outputs); in ours, queries, keys and values of a channel are neighbours."""
    kernels, biases = ([module[f"NIN_{i}.{kind}"] for i in range(4)] for kind in "Wb")
    return {
        f"{name}.norm2.weight": module["GroupNorm_0.weight"],
        f"{name}.norm2.bias": module["GroupNorm_0.bias"],
        f"{name}.qkv.weight": torch.stack([w.T for w in kernels[:3]], 1).flatten(0, 1)[..., None, None],
        f"{name}.qkv.bias": torch.stack(biases[:3], 1).flatten(),
        f"{name}.proj.weight": kernels[3].T[..., None, None],
        f"{name}.proj.bias": biases[3],
    }
