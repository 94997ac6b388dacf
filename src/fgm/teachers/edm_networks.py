"""EDM's two U-Nets, F(x, c_noise, labels), under the names that their checkpoints use (arXiv 2206.00364, appendix F).

    SongUNet        DDPM++ and NCSN++ (Song et al., arXiv 2011.13456): time shifts; sums are scaled by 2^(-1/2); one head
    DhariwalUNet    ADM (Dhariwal and Nichol, arXiv 2105.05233): time scales and shifts; heads of 64 channels

Dropout and the weights of augmentation are left out, since only EDM's own training uses them.

Shapes: x (b, channels, size, size), c_noise (b,), labels one-hot (b, num_classes), all zero for the null class;
in the code h is heads, d channels of a head, n pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, silu


class LayerSpec(NamedTuple):
    """One layer of a U-Net: channels in and out, side of its output, index among the blocks of its level."""

    part: Literal["enc", "dec"]
    kind: Literal["conv", "down", "up", "in0", "in1", "block"]
    inputs: int
    outputs: int
    side: int
    index: int = 0

    @property
    def name(self) -> str:
        return f"{self.side}x{self.side}_{self.kind}{self.index if self.kind == 'block' else ''}"


def layer_specs(size: int, channels: int, stem: int, widths: Sequence[int], blocks: int) -> Iterator[LayerSpec]:
    """Yield the layers of EDM's and EDM2's networks in the order of their calls.

        enc    SxS_conv, SxS_block0, ...; for each further level SxS_down, SxS_block0, ...     each output is a skip
        dec    SxS_in0, SxS_in1, SxS_block0, ...; for each further level SxS_up, SxS_block0, ...    blocks take a skip

    Args:
        size, channels: of the image.
        stem: output channels of the first convolution.
        widths: channels of each level, from the highest resolution.
        blocks: residual blocks of a level in the encoder; the decoder has one more.
    """
    skips, c, last = [stem], stem, len(widths) - 1
    yield LayerSpec("enc", "conv", channels, stem, size)
    for level, width in enumerate(widths):
        if level:
            yield LayerSpec("enc", "down", c, c, size >> level)
            skips.append(c)
        for i in range(blocks):
            yield LayerSpec("enc", "block", c, width, size >> level, i)
            c = width
            skips.append(c)
    for level, width in reversed(list(enumerate(widths))):
        for kind in ("in0", "in1") if level == last else ("up",):
            yield LayerSpec("dec", kind, c, c, size >> level)
        for i in range(blocks + 1):
            yield LayerSpec("dec", "block", c + skips.pop(), width, size >> level, i)
            c = width


class Conv2d(nn.Module):
    """A convolution after doubling or halving the side with a separable filter.

    Args:
        inputs, outputs: channels.
        kernel: side of the convolution; 0 to resample only.
        up, down: double or halve the side.
        taps: the filter; (1, 1) is nearest neighbour for up and the mean of 2 x 2 pixels for down.
        resample_last: convolve first, as NCSN++'s residual encoder does.
        init_weight: factor of the initial weights.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, up: bool = False, down: bool = False,
        taps: Sequence[float] = (1, 1), resample_last: bool = False, init_weight: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.up, self.down, self.resample_last, self.weight, self.bias = up, down, resample_last, None, None
        if kernel:
            bound = math.sqrt(6 / (kernel**2 * (inputs + outputs)))
            weight = torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound)
            self.weight = nn.Parameter(init_weight * weight)
            self.bias = nn.Parameter(torch.zeros(outputs))
        row = torch.tensor(taps, dtype=torch.float32)
        filter_2d = torch.outer(row, row)[None, None] / row.sum() ** 2
        self.register_buffer("resample_filter", filter_2d if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample_last:
            assert self.weight is not None and self.bias is not None
            margin = self.get_buffer("resample_filter").shape[-1] // 2 - 1  # of the filter, added by the convolution
            y = conv2d(x, self.weight, padding=margin + self.weight.shape[-1] // 2)
            return self.resample(y, padded=True) + self.bias[:, None, None]
        x = self.resample(x) if self.up or self.down else x
        return x if self.weight is None else conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def resample(self, x: Tensor, padded: bool = False) -> Tensor:
        taps = self.get_buffer("resample_filter").to(x.dtype).expand(x.shape[1], 1, -1, -1)
        padding = 0 if padded else (taps.shape[-1] - 1) // 2
        if self.up:
            return conv_transpose2d(x, 4 * taps, stride=2, padding=padding, groups=x.shape[1])
        return conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


@dataclass(frozen=True)
class BlockConfig:
    """What distinguishes the blocks of SongUNet and DhariwalUNet."""

    features: int  # width of the time features
    adaptive_scale: bool  # time scales as well as shifts
    skip_scale: float  # factor of every sum of two
    head_channels: int | None  # channels of an attention head; None for a single head
    eps: float  # of the normalisations
    resample_proj: bool  # a resampling shortcut has a convolution even if the number of channels stays
    taps: tuple[float, ...] = (1, 1)  # filter of the resampling


class UNetBlock(nn.Module):
    """Two convolutions with a shortcut, modulated by time features (b, config.features), and optional attention."""

    def __init__(
        self, inputs: int, outputs: int, config: BlockConfig, up: bool = False, down: bool = False,
        attention: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs, self.config = inputs, config
        self.norm0 = group_norm(inputs, config.eps)
        self.conv0 = Conv2d(inputs, outputs, 3, up, down, config.taps)
        self.affine = nn.Linear(config.features, outputs * (2 if config.adaptive_scale else 1))
        self.norm1 = group_norm(outputs, config.eps)
        self.conv1 = Conv2d(outputs, outputs, 3, init_weight=1e-5)
        self.skip = None
        if outputs != inputs or up or down:
            kernel = 1 if config.resample_proj or outputs != inputs else 0
            self.skip = Conv2d(inputs, outputs, kernel, up, down, config.taps)
        self.heads = (outputs // config.head_channels if config.head_channels else 1) if attention else 0
        if self.heads:
            self.norm2 = group_norm(outputs, config.eps)
            self.qkv = Conv2d(outputs, 3 * outputs, 1)
            self.proj = Conv2d(outputs, outputs, 1, init_weight=1e-5)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.conv0(silu(self.norm0(x)))
        modulation = self.affine(features)[:, :, None, None]
        if self.config.adaptive_scale:
            scale, shift = modulation.chunk(2, 1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + modulation)
        x = (self.conv1(silu(h)) + (x if self.skip is None else self.skip(x))) * self.config.skip_scale
        return (self.attention(x) + x) * self.config.skip_scale if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))  # channels are ordered (h, d, qkv)
        q, k, v = qkv.permute(3, 0, 1, 4, 2)  # each (b, h, n, d)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


class PositionalEmbedding(nn.Module):
    """c_noise (b,) -> (b, width): cosines, then sines, of frequencies from 1 to 1e-4."""

    scale = 1.0

    def __init__(self, width: int, endpoint: bool) -> None:
        super().__init__()
        exponents = torch.arange(width // 2) / (width // 2 - endpoint)
        self.register_buffer("freqs", torch.exp(-math.log(10_000) * exponents), persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        angle = noise[:, None] * (self.scale * self.get_buffer("freqs"))
        return torch.cat([angle.cos(), angle.sin()], 1)


class FourierEmbedding(PositionalEmbedding):
    """The same of random frequencies, which are part of the state dict."""

    scale = 2 * math.pi

    def __init__(self, width: int) -> None:
        super().__init__(width, False)
        self.register_buffer("freqs", 16 * torch.randn(width // 2))


class EDMUNet(nn.Module):
    """Encoder and decoder of both networks.

    Args:
        size, channels: of the image.
        block: configuration of the blocks.
        width, multipliers, blocks: channels, their factor at each level, blocks per level.
        attention: sides at which blocks attend.
        stem: output channels of the first convolution.
        residual: add NCSN++'s pyramid of downsampled inputs to the encoder.
        attention_in_decoder: every block of a decoder's level attends, instead of its last one only.
    """

    def __init__(
        self, size: int, channels: int, block: BlockConfig, width: int, multipliers: Sequence[int], blocks: int,
        attention: Sequence[int], stem: int, residual: bool = False, attention_in_decoder: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.enc, self.dec, pyramid = nn.ModuleDict(), nn.ModuleDict(), channels
        for spec in layer_specs(size, channels, stem, [width * m for m in multipliers], blocks):
            n, m, part = spec.inputs, spec.outputs, self.get_submodule(spec.part)
            allowed = spec.part == "enc" or attention_in_decoder or spec.index == blocks
            attends = spec.kind == "in0" or (spec.kind == "block" and spec.side in attention and allowed)
            part.add_module(
                spec.name,
                Conv2d(n, m, 3) if spec.kind == "conv" else
                UNetBlock(n, m, block, spec.kind == "up", spec.kind == "down", attends),
            )  # fmt: skip
            if residual and spec.kind == "down":
                layer = Conv2d(pyramid, m, 3, down=True, taps=block.taps, resample_last=True)
                part.add_module(f"{spec.side}x{spec.side}_aux_residual", layer)
                pyramid = m
        self.out_channels = width * multipliers[0]

    def backbone(self, x: Tensor, features: Tensor) -> Tensor:
        """Return the output of the decoder's last block."""
        skips, pyramid = [], x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = skips[-1] = pyramid = (x + layer(pyramid)) / math.sqrt(2)
            else:
                x = layer(x, features) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        for layer in self.dec.values():
            if isinstance(layer, UNetBlock):
                x = layer(torch.cat([x, skips.pop()], 1) if x.shape[1] != layer.inputs else x, features)
        return x


class SongUNet(EDMUNet):
    """DDPM++ and NCSN++; arguments as EDM's checkpoints name them."""

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2), channel_mult_emb: int = 4, num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,), embedding_type: str = "positional", channel_mult_noise: int = 1,
        encoder_type: str = "standard", resample_filter: Sequence[float] = (1, 1),
    ) -> None:  # fmt: skip
        features, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        block = BlockConfig(features, False, math.sqrt(0.5), None, 1e-6, True, tuple(resample_filter))
        super().__init__(
            img_resolution, in_channels, block, model_channels, channel_mult, num_blocks, attn_resolutions,
            model_channels, residual=encoder_type == "residual",
        )  # fmt: skip
        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise, True) if positional else FourierEmbedding(noise)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, features), nn.Linear(features, features)
        self.aux = f"{img_resolution}x{img_resolution}_aux"
        self.dec[f"{self.aux}_norm"] = group_norm(self.out_channels, 1e-6)
        self.dec[f"{self.aux}_conv"] = Conv2d(self.out_channels, out_channels, 3, init_weight=1e-5)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        features = torch.cat(self.map_noise(noise).chunk(2, 1)[::-1], 1)  # sines first
        if self.map_label is not None and labels is not None:
            features = features + self.map_label(labels * math.sqrt(self.map_label.in_features))
        features = silu(self.map_layer1(silu(self.map_layer0(features))))
        norm, conv = self.dec[f"{self.aux}_norm"], self.dec[f"{self.aux}_conv"]
        return conv(silu(norm(self.backbone(x, features))))


class DhariwalUNet(EDMUNet):
    """ADM; arguments as EDM's checkpoints name them."""

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_emb: int = 4, num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ) -> None:  # fmt: skip
        features = model_channels * channel_mult_emb
        super().__init__(
            img_resolution, in_channels, BlockConfig(features, True, 1.0, 64, 1e-5, False), model_channels,
            channel_mult, num_blocks, attn_resolutions, model_channels * channel_mult[0], attention_in_decoder=True,
        )  # fmt: skip
        self.map_noise = PositionalEmbedding(model_channels, False)
        self.map_label = nn.Linear(label_dim, features, bias=False) if label_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, features), nn.Linear(features, features)
        self.out_norm = group_norm(self.out_channels, 1e-5)
        self.out_conv = Conv2d(self.out_channels, out_channels, 3, init_weight=1e-5)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        features = self.map_layer1(silu(self.map_layer0(self.map_noise(noise))))
        if self.map_label is not None:
            features = features + self.map_label(labels)
        return self.out_conv(silu(self.out_norm(self.backbone(x, silu(features)))))
