"""A U-Net (arXiv 2006.11239, 2105.05233) as a velocity network: diffusers' UNet2DModel behind our protocol.

It reads time_scale t, in float32 up to the first layer of the time's embedding; the null class has an embedding of its
own. Its last convolution starts at zero, so that a fresh network is the zero field. Weights and activations lie
channels last, as convolutions on GPUs have them; the answer is of x_t's type, also under bf16 autocast.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from fgm.networks import VelocityModel, class_labels, require_shape, zeroed
from fgm.utils.validation import validated

GROUPS = 32  # of a normalisation, of four channels or more each


@validated
class UNet(VelocityModel):
    """v(x_t, t, condition) for images x_t (b, channels, size, size).

    Args:
        size: side of the image, a multiple of 2 to the number of halvings.
        channels: of the image.
        width: channels of the highest resolution.
        multipliers: of width, one for each resolution from the highest.
        blocks: residual blocks at each resolution.
        attention: sides at which blocks attend; the middle always does.
        head: channels of an attention head.
        num_classes: 0 for an unconditional network; else labels run from 0, and num_classes is the null label.
        time_scale: of the number whose sinusoids are the time's features.
    """

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
        self.net = build(
            sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=blocks,
            block_out_channels=tuple(width * m for m in multipliers), attention_head_dim=head,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            norm_num_groups=min(GROUPS, width // 4), num_class_embeds=num_classes + 1 if num_classes else None,
        )  # fmt: skip
        zeroed(self.net.conv_out)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        return called(self.net, x_t, self.time_scale * t, class_labels(self, x_t, condition))


def called(net: Any, x: Tensor, k: Tensor, labels: Tensor | None) -> Tensor:
    """What a UNet2DModel says of x (b, channels, height, width) at step k (b,), in x's dtype and layout."""
    x = x.contiguous(memory_format=torch.channels_last)
    return net(x, k, class_labels=labels, return_dict=False)[0].to(x.dtype).contiguous()


def build(**arguments: Any) -> Any:
    from diffusers import UNet2DModel  # seconds to import, needed here alone

    net: Any = UNet2DModel(**arguments)
    return net.to(memory_format=torch.channels_last)
