"""EDM2's U-Net, F(x, c_noise, labels), as its checkpoints have it (arXiv 2312.02696, config G, figure 21).

Every layer preserves the expected magnitude of what passes through it; there are no biases, and gains are learnt at
two places alone. With rms a root mean square, t the share of b, and n channels:

    unit(x)     x / (rms(x) + 1e-4)
    layer       unit(w) x / sqrt(inputs)                                      eq. 47, w a row of weights
    silu(x)     silu(x) / 0.596                                               eq. 81
    sum         ((1 - t) a + t b) / m,  m^2 = (1 - t)^2 + t^2                 eq. 88
    cat         sqrt(n_a + n_b) / m ((1 - t) a / sqrt(n_a), t b / sqrt(n_b))  eq. 103
    waves       sqrt(2) cos(f c_noise + phase)                                eq. 75

The function does not depend on a row's length. Its gradient is orthogonal to the row, so that updates lengthen it and
its learning slows down without bound; EDM2 trains with every row set back to unit length in each forward pass (eq. 66).
Here constrain() sets it back after each update, which is the same sequence of weights, and forward writes to none: a
network may be called twice before a backward. A teacher keeps the rows of its file, averages shorter than 1. Dropout
and the estimate of uncertainty are left out: both belong to EDM2's own training.

Shapes: x (b, channels, size, size), c_noise (b,), labels one-hot (b, num_classes), all zero for the null class;
h heads, d channels of a head, p pixels.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, scaled_dot_product_attention

from fgm.networks.constraints import Constrained
from fgm.teachers.levels import layers

EPS = 1e-4
LABEL, SKIP, BRANCH = 0.5, 0.5, 0.3  # shares: of the class, of a skip connection, of a residual branch and of attention
LARGEST = 256.0  # activation


def unit(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x over its root mean square along dims."""
    norm = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (norm / math.sqrt(math.prod(x.shape[i] for i in dims)) + EPS).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    return nn.functional.silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """a and b, b with its share."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def joined(a: Tensor, b: Tensor, share: float) -> Tensor:
    """a and b as channels of one, b with its share."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - share, share)
    return torch.cat([scale * (1 - share) / math.sqrt(n_a) * a, scale * share / math.sqrt(n_b) * b], 1)


class Layer(Constrained):
    """Linear for kernel 0, else a convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * 2 * bool(kernel)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = unit(self.weight, range(1, self.weight.ndim)) * (gain / math.sqrt(self.weight[0].numel()))
        if w.ndim == 4:
            return conv2d(x, w.to(x.dtype), padding=w.shape[-1] // 2)
        with torch.autocast(x.device.type, enabled=False):  # 1 + gain c would lose c in bfloat16
            return x @ w.T.to(x.dtype)

    def constrain(self) -> None:
        self.weight.copy_(unit(self.weight, range(1, self.weight.ndim)))


class Waves(nn.Module):
    """c_noise (b,) -> (b, width); frequencies and phases are drawn once and kept with the weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, noise: Tensor) -> Tensor:
        freqs, phases = self.get_buffer("freqs"), self.get_buffer("phases")
        return math.sqrt(2) * torch.cos(noise[:, None] * freqs + phases)


class Block(nn.Module):
    """A residual branch modulated by features (b, e), and attention where asked.

    Args:
        inputs, outputs: channels.
        features: e.
        encodes: whether it stands in the encoder, whose pixels are set to unit length.
        up, down: whether the side is doubled or halved first.
        head: channels of an attention head; 0 for no attention.
    """

    def __init__(
        self, inputs: int, outputs: int, features: int, encodes: bool, up: bool = False, down: bool = False,
        head: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs, self.outputs, self.encodes, self.up, self.down = inputs, outputs, encodes, up, down
        self.heads = outputs // head if head else 0
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = Layer(outputs if encodes else inputs, outputs, 3)
        self.emb_linear = Layer(features, outputs)
        self.conv_res1 = Layer(outputs, outputs, 3)
        self.conv_skip = Layer(inputs, outputs, 1) if inputs != outputs else None
        self.attn_qkv = Layer(outputs, 3 * outputs, 1) if self.heads else None
        self.attn_proj = Layer(outputs, outputs, 1) if self.heads else None

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        x = interpolate(x, scale_factor=2.0, mode="nearest") if self.up else avg_pool2d(x, 2) if self.down else x
        x = unit(self.skipped(x), [1]) if self.encodes else x
        scale = 1 + self.emb_linear(features, self.emb_gain)
        y = silu(self.conv_res0(silu(x)) * scale[:, :, None, None].to(x.dtype))
        x = mixed(x if self.encodes else self.skipped(x), self.conv_res1(y), BRANCH)
        x = mixed(x, self.attended(x), BRANCH) if self.heads else x
        return x.clamp(-LARGEST, LARGEST)

    def skipped(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)

    def attended(self, x: Tensor) -> Tensor:
        """Queries, keys and values of unit length; the three of a head lie next to each other: channel (h, d, 3)."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        parts = unit(self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3)), [2])
        q, k, v = parts.permute(3, 0, 1, 4, 2)  # each (b, h, p, d)
        return self.attn_proj(scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


class Edm2UNet(nn.Module):
    """Arguments as EDM2's checkpoints name them."""

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None, num_blocks: int = 3, attn_resolutions: Sequence[int] = (16, 8),
        channels_per_head: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [model_channels * m for m in channel_mult]
        noise = model_channels * (channel_mult_noise or channel_mult[0])
        features = model_channels * (channel_mult_emb or max(channel_mult))
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier, self.emb_noise = Waves(noise), Layer(noise, features)
        self.emb_label = Layer(label_dim, features) if label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for place in layers(img_resolution, in_channels + 1, widths[0], widths, num_blocks):
            attends = place.kind == "in0" or (place.kind == "block" and place.side in attn_resolutions)
            block = partial(Block, place.inputs, place.outputs, features, place.part == "enc")
            self.get_submodule(place.part).add_module(
                place.name,
                Layer(place.inputs, place.outputs, 3) if place.kind == "conv" else
                block(up=place.kind == "up", down=place.kind == "down", head=channels_per_head if attends else 0),
            )  # fmt: skip
        self.out_conv = Layer(widths[0], out_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        features = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None and labels is not None:
            features = mixed(features, self.emb_label(labels * math.sqrt(labels.shape[1])), LABEL)
        features, skips = silu(features), []
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        for layer in self.enc.values():
            x = layer(x, features) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(joined(x, skips.pop(), SKIP) if "block" in name else x, features)
        return self.out_conv(x, self.out_gain)
