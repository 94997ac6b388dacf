"""The order, the names and the channels of the layers of a U-Net, as EDM's and EDM2's networks share them.

    enc    SxS_conv, SxS_block0, ...; on every further level SxS_down, SxS_block0, ...     each leaves a skip behind
    dec    SxS_in0, SxS_in1, SxS_block0, ...; on every further level SxS_up, SxS_block0, ...    a block takes one

One block more of a level decodes than encodes.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

Kind = Literal["conv", "down", "up", "in0", "in1", "block"]


class Place(NamedTuple):
    """Of a layer: part and kind, channels in and out, side of its images, number among its level's."""

    part: Literal["enc", "dec"]
    kind: Kind
    inputs: int
    outputs: int
    side: int
    number: int = 0

    @property
    def name(self) -> str:
        return f"{self.side}x{self.side}_{self.kind}{self.number if self.kind == 'block' else ''}"


def layers(size: int, channels: int, entry: int, widths: Sequence[int], blocks: int) -> Iterator[Place]:
    """In the order of their calls.

    Args:
        size, channels: of the image.
        entry: channels of the first convolution.
        widths: channels of each level, from the highest resolution.
        blocks: residual blocks that encode a level.
    """
    skips, c, last = [entry], entry, len(widths) - 1
    yield Place("enc", "conv", channels, entry, size)
    for level, width in enumerate(widths):
        if level:
            yield Place("enc", "down", c, c, size >> level)
            skips.append(c)
        for i in range(blocks):
            yield Place("enc", "block", c, width, size >> level, i)
            c = width
            skips.append(c)
    for level, width in reversed(list(enumerate(widths))):
        for kind in ("in0", "in1") if level == last else ("up",):
            yield Place("dec", kind, c, c, size >> level)
        for i in range(blocks + 1):
            yield Place("dec", "block", c + skips.pop(), width, size >> level, i)
            c = width
