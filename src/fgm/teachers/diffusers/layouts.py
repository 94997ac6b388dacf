"""From latents to what a transformer reads and back: layouts, position arguments and times of its embedding.

x is a batch of our latents, (b, c, h, w) or (b, c, frames, h, w); c, h, w are those of the space in which the noise is white.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

Arguments = dict[str, Any]


class Layout(Protocol):
    patch: int  # latents a side that one token covers

    def channels(self, in_channels: int) -> int:
        """Return the channels of x for a transformer's in_channels."""
        ...

    def pack(self, x: Tensor) -> Any:
        """Return x as the transformer reads it."""
        ...

    def unpack(self, y: Any, x: Tensor) -> Tensor:
        """Return the transformer's output in the shape of x."""
        ...


class Grid:
    """The latents themselves; the transformer cuts its patches."""

    def __init__(self, patch: int) -> None:
        self.patch = patch

    def channels(self, in_channels: int) -> int:
        return in_channels

    def pack(self, x: Tensor) -> Tensor:
        return x

    def unpack(self, y: Tensor, x: Tensor) -> Tensor:
        del x
        return y


class Tokens:
    """Rows of tokens, (b, (h/p)(w/p), c p p), each a patch of p x p latents, channels first."""

    def __init__(self, patch: int) -> None:
        self.patch = patch

    def channels(self, in_channels: int) -> int:
        return in_channels // self.patch**2

    def pack(self, x: Tensor) -> Tensor:
        (b, c, h, w), p = x.shape, self.patch
        return x.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // p**2, c * p**2)

    def unpack(self, y: Tensor, x: Tensor) -> Tensor:
        (b, c, h, w), p = x.shape, self.patch
        return y.view(b, h // p, w // p, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


class SingleFrames:
    """A list of videos of one frame, b times (c, 1, h, w); the transformer cuts its patches."""

    patch = 2

    def channels(self, in_channels: int) -> int:
        return in_channels

    def pack(self, x: Tensor) -> list[Tensor]:
        return list(x.unsqueeze(2).unbind())

    def unpack(self, y: list[Tensor], x: Tensor) -> Tensor:
        del x
        return torch.stack(y).squeeze(2)


# Arguments that follow from the shapes: (velocity, x, the transformer's arguments so far) -> more arguments.


def nothing(net: Any, x: Tensor, given: Arguments) -> Arguments:
    del net, x, given
    return {}


def positions(x: Tensor, patch: int) -> Tensor:
    """Return row and column of every token, (tokens, 2)."""
    rows, columns = (torch.arange(side // patch, device=x.device, dtype=torch.float32) for side in x.shape[2:])
    return torch.cartesian_prod(rows, columns)


def flux_ids(net: Any, x: Tensor, given: Arguments) -> Arguments:
    """Return ids (0, row, column) of the tokens, and (0, 0, 0) of the words."""
    words = given["encoder_hidden_states"].shape[1]
    ids = positions(x, net.family.layout.patch)
    return {"img_ids": torch.cat([torch.zeros_like(ids[:, :1]), ids], 1), "txt_ids": ids.new_zeros(words, 3)}


def chroma_ids(net: Any, x: Tensor, given: Arguments) -> Arguments:
    """Return FLUX.1's ids, and the mask of the words followed by ones for the tokens."""
    ids, mask = flux_ids(net, x, given), given["attention_mask"]
    ones = mask.new_ones(len(mask), len(ids["img_ids"]))
    return ids | {"attention_mask": torch.cat([mask, ones], 1)}


def flux2_ids(net: Any, x: Tensor, given: Arguments) -> Arguments:
    """Return ids (0, row, column, 0) of the tokens, and (0, 0, 0, position) of the words, the same for each sample."""
    (b, words), ids = given["encoder_hidden_states"].shape[:2], positions(x, net.family.layout.patch)
    zero, place = torch.zeros_like(ids[:, :1]), torch.arange(words, device=x.device, dtype=ids.dtype)[:, None]
    image, text = torch.cat([zero, ids, zero], 1), torch.cat([place.new_zeros(words, 3), place], 1)
    return {"img_ids": image.expand(b, -1, -1), "txt_ids": text.expand(b, -1, -1)}


def qwen_shapes(net: Any, x: Tensor, given: Arguments) -> Arguments:
    """Return the number of frames, rows and columns of tokens of each sample."""
    del given
    (h, w), patch = x.shape[2:], net.family.layout.patch
    return {"img_shapes": [[(1, h // patch, w // patch)]] * len(x)}


def cogview_sizes(net: Any, x: Tensor, given: Arguments) -> Arguments:
    """Return height and width in pixels, and a crop that begins at the corner."""
    del given
    size = x.new_tensor([side * net.pixels_per_latent for side in x.shape[2:]], dtype=net.transformer.dtype)
    sizes = size.expand(len(x), 2)
    return {"original_size": sizes, "target_size": sizes, "crop_coords": torch.zeros_like(sizes)}


# Times: (velocity, t) -> the transformer's.


def thousandths(net: Any, t: Tensor) -> Tensor:
    """Return 1000 t."""
    del net
    return 1000 * t


def plain(net: Any, t: Tensor) -> Tensor:
    """Return t; the transformer multiplies it by 1000."""
    del net
    return t


def reversed_time(net: Any, t: Tensor) -> Tensor:
    """Return 1 - t, of families with noise at 0."""
    del net
    return 1 - t


def sana_time(net: Any, t: Tensor) -> Tensor:
    """Return 1000 t, times the transformer's own timestep_scale."""
    return 1000 * t * net.transformer.config.timestep_scale


def unshifted(net: Any, t: Tensor) -> Tensor:
    """Return 1000 times the time that the scheduler's shift maps to t, which is what CogView4 is given."""
    return 1000 * t / (net.shift - (net.shift - 1) * t)
