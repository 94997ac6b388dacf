"""Rectified flow's CIFAR-10 checkpoints (Liu et al., arXiv 2209.03003; gnobitab/RectifiedFlow) as velocities.

Theirs runs from noise at 0 to data at 1 and reads 999 t, so that v(x, t) = -net(x, 999 (1 - t)), on the rectified path.
Their network is score_sde's DDPM++ (Song et al., arXiv 2011.13456) with BigGAN's blocks and no FIR filter, which
EDM's SongUNet computes as well: the weights go over under other names, and the three matrices of attention become one.
Other networks of theirs are refused, as they are no DDPM++: at 256 pixels it is NCSN++ with FIR filters and a pyramid
of outputs. Theirs is a plain list of modules, in the order in which ours come:

    all_modules.0, .1               map_layer0, map_layer1
    all_modules.i, i from 2         the entries of enc and dec; a block with attention is two of theirs

The file is torch.save's of {"optimizer", "model": state dict, "ema": {"shadow_params": list}, "step"}, read as
weights_only; the averages are a list in the order of the model's own parameters.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fgm.networks import VelocityModel, class_labels, require_shape
from fgm.teachers.edm_networks import SongUNet, UNetBlock
from fgm.utils.errors import UserError, last_line
from fgm.utils.pickles import UNREADABLE, arrays, load_tensors
from fgm.utils.pretrained import require_checkpoint
from fgm.utils.validation import validated

TIMES = 999.0
PLAIN = {"": ""}
BLOCK = {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1", "Conv_1": "conv1",
         "Conv_2": "skip"}  # fmt: skip


@validated
class RectifiedFlow(VelocityModel):
    """v(x_t, t) for images x_t (b, channels, size, size), without classes.

    Args:
        size, channels: of the image.
        width, multipliers, blocks, attention: of the U-Net, see SongUNet; as CIFAR-10's checkpoint has them.
    """

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
        return -self.net(x_t, TIMES * (1 - t), class_labels(self, x_t, condition)).to(x_t.dtype)


@validated
def pretrained(
    checkpoint: str, network: RectifiedFlow, weights: Literal["ema", "model"] = "ema", sha256: str | None = None
) -> RectifiedFlow:
    """
    Args:
        checkpoint: of RectifiedFlow's training.
        network: a fresh one of its size.
        weights: the average, or the last.
        sha256: what the file must hash to, or its beginning; unchecked if None.

    Raises:
        UserError: no such file, more than tensors in it, or weights of another architecture.
    """
    file = require_checkpoint(checkpoint, sha256)
    try:
        with torch.serialization.safe_globals(scalars()):
            content = load_tensors(file)
        state = {n.removeprefix("module."): w for n, w in content["model"].items() if not n.endswith("sigmas")}
        if weights == "ema":
            state = dict(zip(state, content["ema"]["shadow_params"], strict=True))
        network.net.load_state_dict(renamed(state, network.net))
    except UNREADABLE as error:
        raise UserError(
            f"{file}: holds no DDPM++ of this size under {weights}, and no other network of theirs is read "
            f"({last_line(error)})"
        ) from error
    return network


def scalars() -> list[Any]:
    """What numpy's numbers are made of: Adam's rate is one, in their files."""
    parts = {name: part for name, part in arrays().items() if name.endswith(("scalar", "dtype"))}
    kinds = [type(parts["numpy.dtype"](name)) for name in ("float64", "float32", "int64")]
    return [(part, name) for name, part in parts.items()] + kinds


def renamed(state: dict[str, Tensor], net: SongUNet) -> dict[str, Tensor]:
    """Their weights under our names, and our own filters."""
    found = {name: tensor for name, tensor in net.state_dict().items() if name.endswith("resample_filter")}
    theirs = grouped(state)
    for i, (place, leaves) in enumerate(places(net)):
        module = theirs.pop(f"all_modules.{i}")
        found |= attention(place, module) if leaves is None else moved(place, module, leaves)
    if theirs:
        raise ValueError(f"{next(iter(theirs))} has no counterpart")
    return found


def grouped(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By all_modules.i, then by what follows."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        root, number, rest = name.split(".", 2)
        groups.setdefault(f"{root}.{number}", {})[rest] = tensor
    return groups


def places(net: SongUNet) -> Iterator[tuple[str, dict[str, str] | None]]:
    """Our place of each of their modules, and its leaves; None for attention."""
    yield "map_layer0", PLAIN
    yield "map_layer1", PLAIN
    for part in ("enc", "dec"):
        for name, layer in net.get_submodule(part).named_children():
            yield f"{part}.{name}", BLOCK if isinstance(layer, UNetBlock) else PLAIN
            if isinstance(layer, UNetBlock) and layer.heads:
                yield f"{part}.{name}", None


def moved(place: str, module: dict[str, Tensor], leaves: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in module.items():
        leaf, _, kind = name.rpartition(".")
        found[".".join(filter(None, (place, leaves[leaf], kind)))] = tensor
    return found


def attention(place: str, module: dict[str, Tensor]) -> dict[str, Tensor]:
    """W is (inputs, outputs); queries, keys and values of a channel lie next to each other in ours."""
    kernels, biases = ([module[f"NIN_{i}.{kind}"] for i in range(4)] for kind in "Wb")
    found = {f"{place}.norm2.{kind}": module[f"GroupNorm_0.{kind}"] for kind in ("weight", "bias")}
    return found | {
        f"{place}.qkv.weight": torch.stack([w.T for w in kernels[:3]], 1).flatten(0, 1)[..., None, None],
        f"{place}.qkv.bias": torch.stack(biases[:3], 1).flatten(),
        f"{place}.proj.weight": kernels[3].T[..., None, None], f"{place}.proj.bias": biases[3],
    }  # fmt: skip
