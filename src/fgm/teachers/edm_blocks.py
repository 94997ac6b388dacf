"""The layers of EDM's two U-Nets (arXiv 2206.00364), under the names that their checkpoints give to weights.

    DDPM++, NCSN++   (Song et al., arXiv 2011.13456)     time is added; sums of two are scaled by 2^(-1/2); one head
    ADM              (Dhariwal and Nichol, 2105.05233)   time scales and shifts; heads of 64 channels

Shapes in the code: b batch, c channels, n pixels, h heads, d channels of a head, e width of the time's features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu


class Resampled(nn.Module):
    """A convolution, with a halving or a doubling of the side before it by a separable filter.

    Args:
        inputs, outputs: channels.
        kernel: side of the convolution; 0 for none.
        up, down: whether to double, or to halve.
        taps: the filter, e.g. (1, 1): nearest neighbours up, means of 2 x 2 down.
        last: convolve first, as NCSN++ does on its way down beside the blocks.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, up: bool = False, down: bool = False,
        taps: Sequence[float] = (1, 1), last: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.up, self.down, self.last, self.weight, self.bias = up, down, last, None, None
        if kernel:
            bound = math.sqrt(6 / (kernel**2 * (inputs + outputs)))
            self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(outputs))
        row = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer(
            "resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2 if up or down else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.last:
            return self.convolved(self.resampled(x, 0))
        assert self.weight is not None and self.bias is not None
        margin = self.get_buffer("resample_filter").shape[-1] // 2 - 1 + self.weight.shape[-1] // 2
        return self.resampled(conv2d(x, self.weight, padding=margin), None) + self.bias[:, None, None]

    def convolved(self, x: Tensor) -> Tensor:
        return x if self.weight is None else conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def resampled(self, x: Tensor, margin: int | None) -> Tensor:
        """Of twice or half the side; margin None where x already has the filter's."""
        if not (self.up or self.down):
            return x
        taps = self.get_buffer("resample_filter").to(x.dtype).expand(x.shape[1], 1, -1, -1)
        padding = 0 if margin is None else (taps.shape[-1] - 1) // 2
        if self.up:
            return conv_transpose2d(x, 4 * taps, stride=2, padding=padding, groups=x.shape[1])
        return conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


def normalisation(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, of four channels or more."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


@dataclass(frozen=True)
class Style:
    """What tells one family's blocks from the other's.

    Attributes:
        features: e.
        scales: whether time scales as well as shifts.
        factor: of every sum of two.
        head: channels of an attention head; None for one head.
        eps: of the normalisations.
        projects: whether a shortcut that resamples has a convolution even where channels stay.
        taps: of the resampling.
    """

    features: int
    scales: bool
    factor: float
    head: int | None
    eps: float
    projects: bool
    taps: tuple[float, ...] = (1, 1)


class Block(nn.Module):
    """Two convolutions with a shortcut, moved by the time's features (b, e), and attention where asked."""

    def __init__(
        self, inputs: int, outputs: int, style: Style, up: bool = False, down: bool = False, attention: bool = False
    ) -> None:
        super().__init__()
        self.inputs, self.style = inputs, style
        self.norm0 = normalisation(inputs, style.eps)
        self.conv0 = Resampled(inputs, outputs, 3, up, down, style.taps)
        self.affine = nn.Linear(style.features, outputs * (2 if style.scales else 1))
        self.norm1 = normalisation(outputs, style.eps)
        self.conv1 = nearly_zeroed(Resampled(outputs, outputs, 3))
        self.skip = None
        if outputs != inputs or up or down:
            kernel = 1 if style.projects or outputs != inputs else 0
            self.skip = Resampled(inputs, outputs, kernel, up, down, style.taps)
        self.heads = (outputs // style.head if style.head else 1) if attention else 0
        if self.heads:
            self.norm2 = normalisation(outputs, style.eps)
            self.qkv = Resampled(outputs, 3 * outputs, 1)
            self.proj = nearly_zeroed(Resampled(outputs, outputs, 1))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.conv0(silu(self.norm0(x)))
        moved = self.affine(features)[:, :, None, None]
        if self.style.scales:
            scale, shift = moved.chunk(2, 1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + moved)
        x = (self.conv1(silu(h)) + (x if self.skip is None else self.skip(x))) * self.style.factor
        return (self.attended(x) + x) * self.style.factor if self.heads else x

    def attended(self, x: Tensor) -> Tensor:
        """The three of a head lie next to each other: channel (h, d, 3)."""
        parts = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = parts.permute(3, 0, 1, 4, 2)  # each (b, h, n, d)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


def nearly_zeroed(layer: Resampled) -> Resampled:
    """As EDM starts the last layer of a branch."""
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(1e-5)
    return layer
