"""torchcfm's CIFAR-10 checkpoints (Tong et al., arXiv 2302.00482) as velocities on the rectified path.

Theirs runs from noise at 0 to data at 1, so that v(x, t) = -v_theirs(x, 1 - t). Their network is guided-diffusion's
U-Net, which diffusers' UNet2DModel computes as well: the weights go over under other names, and queries, keys and
values, which lie together head by head, are cut apart. It reads t itself, not 1000 t. The file is torch.save's of
{"ema_model" or "net_model": state dict}, read as weights_only.

    input_blocks.0.0                                    conv_in
    input_blocks.i.0 | .1, i from 1                     down_blocks.L.resnets.J | attentions.J, or the downsampler
    middle_block.0 | .1 | .2                            mid_block.resnets.0 | attentions.0 | resnets.1
    output_blocks.i.0 | .1, and the last one of a level up_blocks.L.resnets.J | attentions.J, and the upsampler
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fgm.networks import VelocityModel
from fgm.networks.unet import UNet
from fgm.utils.errors import UserError, last_line
from fgm.utils.pickles import UNREADABLE, load_tensors
from fgm.utils.pretrained import require_checkpoint
from fgm.utils.validation import validated

LEAVES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut", "norm": "group_norm", "proj_out": "to_out.0",
    "op": "conv", "conv": "conv", "qkv": "qkv",
}  # fmt: skip
ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
MIDDLE = {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
          "middle_block.2": "mid_block.resnets.1"}  # fmt: skip


@validated
class TimeReversed(VelocityModel):
    """v(x, t) = -net(x, 1 - t)."""

    def __init__(self, net: VelocityModel) -> None:
        super().__init__()
        self.net, self.shape, self.num_classes = net, net.shape, net.num_classes

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return -self.net(x_t, 1 - t, condition)


@validated
def pretrained(
    checkpoint: str, network: UNet, weights: Literal["ema_model", "net_model"] = "ema_model", sha256: str | None = None
) -> TimeReversed:
    """
    Args:
        checkpoint: of torchcfm's training.
        network: a fresh U-Net of its size, with time_scale 1.
        weights: the average, or the last.
        sha256: what the file must hash to, or its beginning; unchecked if None.

    Raises:
        UserError: no such file, more than tensors in it, or weights of another size.
    """
    file = require_checkpoint(checkpoint, sha256)
    try:
        network.net.load_state_dict(renamed(load_tensors(file)[weights], network))
    except UNREADABLE as error:
        raise UserError(f"{file}: holds no weights of this U-Net under {weights} ({last_line(error)})") from error
    return TimeReversed(network)


def renamed(state: dict[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """Their weights under diffusers' names; a label's null row, which they lack, is zero."""
    places, found = blocks(network.multipliers, network.blocks), {}
    for name, weight in state.items():
        place, leaf, kind = located(name.removeprefix("module."), places)
        if leaf == "qkv":
            heads = weight.shape[0] // 3 // network.head
            parts = weight.reshape(heads, 3, network.head, *weight.shape[1:2]).unbind(1)
            found |= {f"{place}.to_{n}.{kind}": p.flatten(0, 1) for n, p in zip("qkv", parts, strict=True)}
        else:
            whole = torch.cat([weight, weight.new_zeros(1, weight.shape[1])]) if place == "class_embedding" else weight
            stem = f"{place}.{leaf}" if leaf else place
            found[f"{stem}.{kind}"] = whole.flatten(1) if leaf == "to_out.0" and kind == "weight" else whole
    return found


def located(name: str, places: dict[str, str]) -> tuple[str, str, str]:
    """Place, leaf and kind of a weight, as input_blocks.1.0 . in_layers.0 . weight has them."""
    stem, _, kind = name.rpartition(".")
    if stem in ENDS:
        return ENDS[stem], "", kind
    place, leaf = re.fullmatch(r"(middle_block\.\d+|(?:in|out)put_blocks\.\d+\.\d+)\.(.+)", stem).groups()  # type: ignore[union-attr]
    resampled = LEAVES[leaf] == "conv"  # wherever it stands in its block
    return places[f"{place.rpartition('.')[0]} resampled" if resampled else place], LEAVES[leaf], kind


def blocks(multipliers: Sequence[int], count: int) -> dict[str, str]:
    """diffusers' place for each of their blocks."""
    places, i, levels = dict(MIDDLE), 1, len(multipliers)
    for level in range(levels):
        for j in range(count):
            places |= pair(f"input_blocks.{i}", f"down_blocks.{level}", j)
            i += 1
        if level < levels - 1:
            places[f"input_blocks.{i} resampled"] = f"down_blocks.{level}.downsamplers.0"
            i += 1
    i = 0
    for level in range(levels):
        for j in range(count + 1):
            places |= pair(f"output_blocks.{i}", f"up_blocks.{level}", j)
            i += 1
        places[f"output_blocks.{i - 1} resampled"] = f"up_blocks.{level}.upsamplers.0"
    return places


def pair(theirs: str, ours: str, j: int) -> dict[str, str]:
    return {f"{theirs}.0": f"{ours}.resnets.{j}", f"{theirs}.1": f"{ours}.attentions.{j}"}
