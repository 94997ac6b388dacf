"""EDM's two U-Nets, F(x, c_noise, labels), as its checkpoints have them (arXiv 2206.00364, appendix F).

    SongUNet        DDPM++ (positional time, plain encoder) and NCSN++ (Fourier time, residual encoder, taps 1 3 3 1)
    DhariwalUNet    ADM

Weights that serve augmentation alone are left out, and so is dropout: both belong to EDM's own training.
Shapes: x (b, channels, size, size), c_noise (b,), labels one-hot (b, num_classes), all zero for the null class.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fgm.teachers.edm_blocks import Block, Resampled, Style, nearly_zeroed, normalisation
from fgm.teachers.levels import layers


class Sinusoids(nn.Module):
    """c_noise (b,) -> (b, width): cosines, then sines, of frequencies from 1 to 1e-4."""

    def __init__(self, width: int, endpoint: bool) -> None:
        super().__init__()
        half = width // 2
        exponents = torch.arange(half) / (half - endpoint)
        self.register_buffer("omega", torch.exp(-math.log(10_000) * exponents), persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        angle = noise[:, None] * self.get_buffer("omega")
        return torch.cat([angle.cos(), angle.sin()], 1)


class FourierFeatures(nn.Module):
    """c_noise (b,) -> (b, width): cosines, then sines, of frequencies that are drawn once and kept with the weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(width // 2))

    def forward(self, noise: Tensor) -> Tensor:
        angle = noise[:, None] * (2 * math.pi * self.get_buffer("freqs"))
        return torch.cat([angle.cos(), angle.sin()], 1)


class EdmUNet(nn.Module):
    """What both have in common: the levels, and the way through them.

    Args:
        img_resolution, in_channels, out_channels, label_dim: of images and labels.
        style: of the blocks.
        width, multipliers, blocks, attention: channels, their factors by level, blocks a level, sides that attend.
        entry: channels of the first convolution.
        residual: whether NCSN++'s pyramid runs beside the encoder.
        attends_up: whether all blocks of a decoder's level attend, or its last one alone.
    """

    def __init__(
        self, img_resolution: int, in_channels: int, style: Style, width: int, multipliers: Sequence[int],
        blocks: int, attention: Sequence[int], residual: bool, attends_up: bool, entry: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.enc, self.dec, aside = nn.ModuleDict(), nn.ModuleDict(), in_channels
        for place in layers(img_resolution, in_channels, entry, [width * m for m in multipliers], blocks):
            n, m = place.inputs, place.outputs
            here = place.part == "enc" or attends_up or place.number == blocks
            attends = place.kind == "in0" or (place.kind == "block" and place.side in attention and here)
            block = partial(Block, n, m, style, place.kind == "up", place.kind == "down", attends)
            part = self.get_submodule(place.part)
            part.add_module(place.name, Resampled(n, m, 3) if place.kind == "conv" else block())
            if residual and place.kind == "down":
                beside = Resampled(aside, m, 3, down=True, taps=style.taps, last=True)
                part.add_module(f"{place.side}x{place.side}_aux_residual", beside)
                aside = m
        self.outputs = width * multipliers[0]

    def through(self, x: Tensor, features: Tensor) -> Tensor:
        """x after the decoder's last block."""
        skips, aside = [], x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = skips[-1] = aside = (x + layer(aside)) / math.sqrt(2)
            else:
                x = layer(x, features) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        for layer in self.dec.values():
            if isinstance(layer, Block):
                x = layer(torch.cat([x, skips.pop()], 1) if x.shape[1] != layer.inputs else x, features)
        return x


class SongUNet(EdmUNet):
    """DDPM++ and NCSN++; arguments as EDM's checkpoints name them."""

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2), channel_mult_emb: int = 4, num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,), embedding_type: str = "positional", channel_mult_noise: int = 1,
        encoder_type: str = "standard", resample_filter: Sequence[float] = (1, 1),
    ) -> None:  # fmt: skip
        features, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        style = Style(features, False, math.sqrt(0.5), None, 1e-6, True, tuple(resample_filter))
        super().__init__(
            img_resolution, in_channels, style, model_channels, channel_mult, num_blocks, attn_resolutions,
            encoder_type == "residual", False, model_channels,
        )  # fmt: skip
        self.map_noise = Sinusoids(noise, True) if embedding_type == "positional" else FourierFeatures(noise)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, features), nn.Linear(features, features)
        side = f"{img_resolution}x{img_resolution}"
        self.dec[f"{side}_aux_norm"] = normalisation(self.outputs, 1e-6)
        self.dec[f"{side}_aux_conv"] = nearly_zeroed(Resampled(self.outputs, out_channels, 3))
        self.tail = [f"{side}_aux_norm", f"{side}_aux_conv"]

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        features = torch.cat(self.map_noise(noise).chunk(2, 1)[::-1], 1)  # sines first
        if self.map_label is not None and labels is not None:
            features = features + self.map_label(labels * math.sqrt(self.map_label.in_features))
        features = silu(self.map_layer1(silu(self.map_layer0(features))))
        norm, out = (self.dec[name] for name in self.tail)
        return out(silu(norm(self.through(x, features))))


class DhariwalUNet(EdmUNet):
    """ADM; arguments as EDM's checkpoints name them."""

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_emb: int = 4, num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ) -> None:  # fmt: skip
        features = model_channels * channel_mult_emb
        super().__init__(
            img_resolution, in_channels, Style(features, True, 1.0, 64, 1e-5, False), model_channels, channel_mult,
            num_blocks, attn_resolutions, False, True, model_channels * channel_mult[0],
        )  # fmt: skip
        self.map_noise = Sinusoids(model_channels, False)
        self.map_label = nn.Linear(label_dim, features, bias=False) if label_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, features), nn.Linear(features, features)
        self.out_norm = normalisation(self.outputs, 1e-5)
        self.out_conv = nearly_zeroed(Resampled(self.outputs, out_channels, 3))

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        features = self.map_layer1(silu(self.map_layer0(self.map_noise(noise))))
        if self.map_label is not None:
            features = features + self.map_label(labels)
        return self.out_conv(silu(self.out_norm(self.through(x, silu(features)))))
