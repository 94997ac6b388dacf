"""torchcfm's CIFAR-10 checkpoints (Tong et al., arXiv 2302.00482) as velocities on the rectified path.

Their time runs from noise at 0 to data at 1, so v(x, t) = -v_theirs(x, 1 - t), and the network's time is t, not 1000 t.
Their network is guided-diffusion's U-Net, which diffusers' UNet2DModel computes as well: the weights get other names, and
queries, keys and values, which they store head by head in one matrix, become three. The file is torch.save's of
{"ema_model" or "net_model": state dict}, read with weights_only.

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

from fgm.flow.paths import RectifiedPath
from fgm.networks import VelocityModel
from fgm.networks.unet import UNet
from fgm.utils.errors import UserError, last_line
from fgm.utils.pickles import UNREADABLE, read_checkpoint, require_finite, without_prefix
from fgm.utils.pretrained import require_checkpoint
from fgm.utils.validation import validated

LAYERS = {  # inside a block
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut", "norm": "group_norm", "proj_out": "to_out.0",
    "op": "conv", "conv": "conv", "qkv": "qkv",
}  # fmt: skip
OUTSIDE_BLOCKS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
MIDDLE = {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
          "middle_block.2": "mid_block.resnets.1"}  # fmt: skip
IN_BLOCK = re.compile(r"((middle_block|(?:in|out)put_blocks\.\d+)\.\d+)\.(.+)")  # block, its group, layer


@validated
class TimeReversed(VelocityModel):
    """v(x, t) = -net(x, 1 - t)."""

    takes_prompts, path, null_condition = False, RectifiedPath(), False

    def __init__(self, net: VelocityModel) -> None:
        super().__init__()
        self.net, self.shape, self.num_classes = net, net.shape, net.num_classes

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return -self.net(x_t, 1 - t, condition)


@validated
def pretrained(
    checkpoint: str, network: UNet, weights: Literal["ema_model", "net_model"] = "ema_model", sha256: str | None = None
) -> TimeReversed:
    """Load a checkpoint of torchcfm's training.

    Args:
        checkpoint: the file.
        network: a new U-Net of its size, with time_scale 1.
        weights: the average, or the last ones.
        sha256: the beginning of the file's sha256; None checks nothing.

    Raises:
        UserError: the file is missing, has more than tensors in it, or weights of another size.
    """
    file = require_checkpoint(checkpoint, sha256)
    content = read_checkpoint(file)
    try:
        state = without_prefix(content[weights], {"time_embed.0.weight"})
        require_finite(state, file)
        network.net.load_state_dict(convert_state_dict(state, network))
    except UNREADABLE as error:
        raise UserError(f"{file}: has no weights of this U-Net under {weights} ({last_line(error)})") from error
    return TimeReversed(network)


def convert_state_dict(state: dict[str, Tensor], network: UNet) -> dict[str, Tensor]:
    """Return their weights under diffusers' names; the label embedding gets the zero row of the null class."""
    blocks, converted = block_names(network.multipliers, network.blocks), {}
    for name, weight in state.items():
        stem, _, kind = name.rpartition(".")
        if stem == "label_emb":
            weight = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])
        if stem in OUTSIDE_BLOCKS:
            converted[f"{OUTSIDE_BLOCKS[stem]}.{kind}"] = weight
            continue
        block, group, layer = IN_BLOCK.fullmatch(stem).groups()  # type: ignore[union-attr]
        layer = LAYERS[layer]
        target = blocks[f"{group} resampler" if layer == "conv" else block]
        if layer == "qkv":
            heads = weight.shape[0] // 3 // network.head
            parts = weight.reshape(heads, 3, network.head, *weight.shape[1:2]).unbind(1)
            converted |= {f"{target}.to_{n}.{kind}": p.flatten(0, 1) for n, p in zip("qkv", parts, strict=True)}
        else:
            is_projection = layer == "to_out.0" and kind == "weight"  # a 1D convolution of theirs, linear in diffusers
            converted[f"{target}.{layer}.{kind}"] = weight.flatten(1) if is_projection else weight
    return converted


def block_names(multipliers: Sequence[int], blocks: int) -> dict[str, str]:
    """Return diffusers' name of each of their blocks, and of the resampler of each of their groups of blocks."""
    names, levels = dict(MIDDLE), len(multipliers)

    def add(theirs: str, ours: str, j: int) -> None:
        names.update({f"{theirs}.0": f"{ours}.resnets.{j}", f"{theirs}.1": f"{ours}.attentions.{j}"})

    i = 1
    for level in range(levels):
        for j in range(blocks):
            add(f"input_blocks.{i}", f"down_blocks.{level}", j)
            i += 1
        if level < levels - 1:
            names[f"input_blocks.{i} resampler"] = f"down_blocks.{level}.downsamplers.0"
            i += 1
    i = 0
    for level in range(levels):
        for j in range(blocks + 1):
            add(f"output_blocks.{i}", f"up_blocks.{level}", j)
            i += 1
        names[f"output_blocks.{i - 1} resampler"] = f"up_blocks.{level}.upsamplers.0"
    return names
