"""EDM2's U-Net, F(x, c_noise, labels), under the names that its checkpoints use (arXiv 2312.02696, config G, fig. 21).

Every layer preserves the expected magnitude of its input; there are no biases, and gains only in two places. With rms a
root mean square, t the weight of b in a mixture of two, and n channels:

    normalize      x / (rms(x) + 1e-4)
    MPConv         normalize(w) x / sqrt(inputs)                                 eq. 47, w a row of weights
    mp_silu        silu(x) / 0.596                                               eq. 81
    mp_sum         ((1 - t) a + t b) / m,  m^2 = (1 - t)^2 + t^2                 eq. 88
    mp_cat         sqrt(n_a + n_b) / m ((1 - t) a / sqrt(n_a), t b / sqrt(n_b))  eq. 103
    MPFourier      sqrt(2) cos(f c_noise + phase)                                eq. 75

Forced weight normalisation. The output does not depend on the length of a row of weights, and its gradient is orthogonal
to the row, so that updates lengthen rows and learning slows down without bound. EDM2 resets every row to unit length in
each forward pass of training (eq. 66). Here MPConv.constrain_() resets it after each optimizer step, which gives the
same sequence of weights and leaves them alone in forward, so that a network may be called twice before a backward. A
teacher keeps the rows of its file, averages shorter than 1.

Dropout and the uncertainty estimate are left out, since only EDM2's own training uses them.

Shapes: x (b, channels, size, size), c_noise (b,), labels one-hot (b, num_classes), all zero for the null class;
in the code h is heads, d channels of a head, n pixels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, silu

from fgm.teachers.edm_networks import layer_specs

LABEL_BALANCE, CONCAT_BALANCE, RES_BALANCE = 0.5, 0.5, 0.3  # t for labels, skips, and residual branches
CLIP_ACT = 256.0


def normalize(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Divide x by its root mean square along dims."""
    norm = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (norm / math.sqrt(math.prod(x.shape[i] for i in dims)) + 1e-4).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    return torch.cat([scale * (1 - t) / math.sqrt(n_a) * a, scale * t / math.sqrt(n_b) * b], 1)


class MPConv(nn.Module):
    """A linear layer for kernel 0, otherwise a convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * 2 * bool(kernel)))

    def normalized_weight(self) -> Tensor:
        return normalize(self.weight, range(1, self.weight.ndim))

    @torch.no_grad()
    def constrain_(self) -> None:
        """Normalise the rows in place; training calls it at the start and after every optimizer step."""
        self.weight.copy_(self.normalized_weight())

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = self.normalized_weight() * (gain / math.sqrt(self.weight[0].numel()))
        if w.ndim == 4:
            return conv2d(x, w.to(x.dtype), padding=w.shape[-1] // 2)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16, 1 + gain c would lose c
            return x @ w.T.to(x.dtype)


class MPFourier(nn.Module):
    """c_noise (b,) -> (b, width); the random frequencies and phases are part of the state dict."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, noise: Tensor) -> Tensor:
        freqs, phases = self.get_buffer("freqs"), self.get_buffer("phases")
        return math.sqrt(2) * torch.cos(noise[:, None] * freqs + phases)


class Block(nn.Module):
    """A residual branch modulated by the embedding of noise and class, and optional attention.

    Args:
        inputs, outputs: channels.
        embedding: width of the embedding.
        encoder: whether the block belongs to the encoder, which normalises its pixels.
        up, down: double or halve the side first.
        head_channels: channels of an attention head; 0 for no attention.
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int, encoder: bool, up: bool, down: bool, head_channels: int
    ) -> None:
        super().__init__()
        self.encoder, self.up, self.down = encoder, up, down
        self.heads = outputs // head_channels if head_channels else 0
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPConv(outputs if encoder else inputs, outputs, 3)
        self.emb_linear = MPConv(embedding, outputs)
        self.conv_res1 = MPConv(outputs, outputs, 3)
        self.conv_skip = MPConv(inputs, outputs, 1) if inputs != outputs else None
        self.attn_qkv = MPConv(outputs, 3 * outputs, 1) if self.heads else None
        self.attn_proj = MPConv(outputs, outputs, 1) if self.heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = interpolate(x, scale_factor=2.0, mode="nearest") if self.up else avg_pool2d(x, 2) if self.down else x
        if self.encoder:
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), [1])
        scale = 1 + self.emb_linear(embedding, self.emb_gain)
        y = self.conv_res1(mp_silu(self.conv_res0(mp_silu(x)) * scale[:, :, None, None].to(x.dtype)))
        if not self.encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, RES_BALANCE)
        x = mp_sum(x, self.attention(x), RES_BALANCE) if self.heads else x
        return x.clamp(-CLIP_ACT, CLIP_ACT)

    def attention(self, x: Tensor) -> Tensor:
        assert self.attn_qkv is not None and self.attn_proj is not None
        qkv = self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))  # channels are ordered (h, d, qkv)
        q, k, v = normalize(qkv, [2]).permute(3, 0, 1, 4, 2)  # each (b, h, n, d)
        return self.attn_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


class EDM2UNet(nn.Module):
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
        embedding = model_channels * (channel_mult_emb or max(channel_mult))
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier, self.emb_noise = MPFourier(noise), MPConv(noise, embedding)
        self.emb_label = MPConv(label_dim, embedding) if label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for spec in layer_specs(img_resolution, in_channels + 1, widths[0], widths, num_blocks):
            n, m, encoder = spec.inputs, spec.outputs, spec.part == "enc"
            attends = spec.kind == "in0" or (spec.kind == "block" and spec.side in attn_resolutions)
            head = channels_per_head if attends else 0
            self.get_submodule(spec.part).add_module(
                spec.name,
                MPConv(n, m, 3) if spec.kind == "conv" else
                Block(n, m, embedding, encoder, spec.kind == "up", spec.kind == "down", head),
            )  # fmt: skip
        self.out_conv = MPConv(widths[0], out_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None and labels is not None:
            label = self.emb_label(labels * math.sqrt(labels.shape[1]))
            embedding = mp_sum(embedding, label, LABEL_BALANCE)
        embedding, skips = mp_silu(embedding), []
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(mp_cat(x, skips.pop(), CONCAT_BALANCE) if "block" in name else x, embedding)
        return self.out_conv(x, self.out_gain)
