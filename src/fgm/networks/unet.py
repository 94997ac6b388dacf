"""A U-Net (arXiv 2006.11239, 2105.05233) as a velocity network: diffusers' UNet2DModel behind our protocol.

Its time is time_scale t, in float32 up to the first layer of the time embedding; the null class has its own embedding.
The last convolution starts at zero, so that a new network's velocity is zero. Weights and activations are in channels-last
layout, which convolutions on GPUs prefer; the output has x_t's dtype, also under bf16 autocast.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from fgm.networks import VelocityModel, class_labels, require_shape, zeroed
from fgm.utils.validation import validated

GROUPS = 32  # of a group normalisation, fewer if that leaves less than four channels each


@validated
class UNet(VelocityModel):
    """The velocity of images x_t (b, channels, size, size).

    Args:
        size: side of the image, divisible by two at every resolution but the last.
        channels: of the image.
        width: channels at the highest resolution.
        multipliers: of width, one for each resolution from the highest.
        blocks: residual blocks at each resolution.
        attention: sides at which blocks attend; the middle block always does.
        head: channels of an attention head.
        num_classes: see VelocityModel.
        time_scale: factor of t before its sinusoidal embedding.

    Raises:
        ValueError: size cannot be halved as often as needed, or head does not divide the channels where blocks attend.
    """

    takes_prompts = False

    def __init__(
        self,
        size: PositiveInt,
        channels: PositiveInt = 3,
        width: Annotated[int, Field(ge=4)] = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: PositiveInt = 2,
        attention: Sequence[int] = (16,),
        head: PositiveInt = 64,
        num_classes: NonNegativeInt = 0,
        time_scale: PositiveFloat = 1000.0,
    ) -> None:
        super().__init__()
        sides = [size >> level for level in range(len(multipliers))]
        if size % 2 ** (len(multipliers) - 1):
            raise ValueError(f"UNet: size {size} cannot be halved {len(multipliers) - 1} times")
        if any(width * m % head for side, m in zip(sides, multipliers, strict=True) if side in (*attention, sides[-1])):
            raise ValueError(f"UNet: head {head} must divide {width} times {list(multipliers)} where it attends")
        self.shape, self.num_classes, self.time_scale = (channels, size, size), num_classes, time_scale
        self.multipliers, self.blocks, self.head = tuple(multipliers), blocks, head
        kinds = ["Attn" if side in attention else "" for side in sides]
        self.net = unet_2d(
            sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=blocks,
            block_out_channels=tuple(width * m for m in multipliers), attention_head_dim=head,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            norm_num_groups=min(GROUPS, width // 4), num_class_embeds=num_classes + 1 if num_classes else None,
        )  # fmt: skip
        zeroed(self.net.conv_out)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        return call_unet(self.net, x_t, self.time_scale * t, class_labels(self, x_t, condition))


def call_unet(net: Any, x: Tensor, k: Tensor, labels: Tensor | None) -> Tensor:
    """Call a UNet2DModel on x (b, channels, height, width) at step k (b,); the output has x's dtype and layout."""
    x = x.contiguous(memory_format=torch.channels_last)
    return net(x, k, class_labels=labels, return_dict=False)[0].to(x.dtype).contiguous()


def unet_2d(**arguments: Any) -> Any:
    from diffusers import UNet2DModel  # takes seconds to import

    net: Any = UNet2DModel(**arguments)
    return net.to(memory_format=torch.channels_last)
