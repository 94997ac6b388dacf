"""The words of ShapeEval's captions, what its colour words mean, and which bindings of colour and shape are held out.

A caption is `a photo of` and one of

    a [COLOUR] SHAPE                                          single_object, colors
    a [COLOUR] SHAPE and a [COLOUR] SHAPE                     two_object, color_attr
    {two, three, four} [COLOUR] SHAPEs                        counting
    a [COLOUR] SHAPE {left of, ...} a [COLOUR] SHAPE          position

Words become ids, one a word, padded with 0 to LENGTH; the empty caption is all padding and stands for "no condition".

Colour c and shape s, by their places below, are held out when c = s modulo 5: a fifth of all pairs, two colours of
every shape. No training caption binds such a pair and no training scene shows it; evaluation reports them apart.

    circle red purple      square orange pink      triangle yellow brown
    cross green black      diamond blue white      ring red purple
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fgm.utils.errors import UserError, hint

COLOURS = {  # GenEval's ten, in sRGB
    "red": (228, 26, 28),
    "orange": (250, 140, 20),
    "yellow": (245, 230, 40),
    "green": (30, 160, 50),
    "blue": (30, 60, 225),
    "purple": (130, 25, 175),
    "pink": (250, 155, 205),
    "brown": (115, 60, 15),
    "black": (12, 12, 12),
    "white": (243, 243, 243),
}
SHAPES = {  # singular to plural; the last two only in hard mode
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "diamond": "diamonds",
    "ring": "rings",
}
COLOUR_NAMES, SHAPE_NAMES = list(COLOURS), list(SHAPES)
PALETTE = torch.tensor(list(COLOURS.values()), dtype=torch.float32)  # (10, 3), 0 to 255
EASY, HARD = 4, 6  # numbers of shapes

PAD = "<pad>"
GLUE = ("a", "an", "photo", "of", "and", "left", "right", "above", "below")
NUMBERS = ("two", "three", "four")
WORDS = (PAD, *GLUE, *NUMBERS, *COLOURS, *SHAPES, *SHAPES.values())
IDS = {word: i for i, word in enumerate(WORDS)}
LENGTH = 12

HELD_OUT = frozenset((c, s) for i, c in enumerate(COLOURS) for j, s in enumerate(SHAPES) if i % 5 == j % 5)
SEEN_COLOURS = torch.tensor([[i for i, c in enumerate(COLOURS) if (c, s) not in HELD_OUT] for s in SHAPES])  # (6, 8)


def encode(captions: Iterable[str]) -> Tensor:
    """Token ids (n, LENGTH), int64."""
    return torch.tensor([encode_one(caption) for caption in captions], dtype=torch.int64).reshape(-1, LENGTH)


def encode_one(caption: str) -> list[int]:
    words = caption.lower().split()
    if len(words) > LENGTH:
        raise UserError(f"the caption {caption!r} has {len(words)} words; at most {LENGTH} are read")
    return [identify(word, caption) for word in words] + [0] * (LENGTH - len(words))


def identify(word: str, caption: str) -> int:
    if word in IDS and word != PAD:
        return IDS[word]
    raise UserError(f"unknown word {word!r} in the caption {caption!r}; {hint(word, WORDS[1:])}")


def decode(tokens: Tensor) -> list[str]:
    """Captions of token ids (n, LENGTH)."""
    return [" ".join(WORDS[i] for i in row if i) for row in tokens.tolist()]
