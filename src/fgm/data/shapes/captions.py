"""ShapeEval's captions: tensors, the words that they become, and the same in the form of GenEval's prompts.

A caption is "a photo of" followed by

    single_object  a SHAPE                      colors      a COLOR SHAPE
    two_object     a SHAPE and a SHAPE          color_attr  a COLOR SHAPE and a COLOR SHAPE, of distinct colors
    counting       {two, three, four} SHAPEs    position    a SHAPE {left of, right of, above, below} a SHAPE

with distinct shapes. Training captions of counting and position also state each color half of the time; GenEval's
prompts never do. Words become token ids, one a word, padded with 0 to LENGTH; the empty caption is all padding and
means "unconditional".

Color c and shape s, by their positions in the lists below, are held out when c = s modulo 5: a fifth of all pairs, two
colors of every shape. No training caption and no training scene has such a pair; evaluation reports them separately.

    circle red purple      square orange pink      triangle yellow brown
    cross green black      diamond blue white      ring red purple
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import permutations, product
from typing import Any, Self

import torch
from torch import Generator, Tensor

from fgm.data.geneval import COLORS, RELATIONS, TAGS, Clause, Metadata, Vocabulary
from fgm.utils.errors import UserError, hint

RGB = {  # of GenEval's colors, in sRGB
    "red": (228, 26, 28), "orange": (250, 140, 20), "yellow": (245, 230, 40), "green": (30, 160, 50),
    "blue": (30, 60, 225), "purple": (130, 25, 175), "pink": (250, 155, 205), "brown": (115, 60, 15),
    "black": (12, 12, 12), "white": (243, 243, 243),
}  # fmt: skip
PALETTE = torch.tensor([RGB[color] for color in COLORS], dtype=torch.float32)  # (10, 3), 0 to 255
PLURALS = {  # the last two shapes only in hard mode
    "circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "diamond": "diamonds",
    "ring": "rings",
}  # fmt: skip
SHAPES = tuple(PLURALS)
EASY, HARD = 4, 6  # numbers of shapes
VOCABULARY = Vocabulary(SHAPES)

PAD = "<pad>"
NUMBERS = ("two", "three", "four")
FUNCTION_WORDS = ("a", "an", "photo", "of", "and", "left", "right", "above", "below")
WORDS = (PAD, *FUNCTION_WORDS, *NUMBERS, *COLORS, *SHAPES, *PLURALS.values())
IDS = {word: i for i, word in enumerate(WORDS)}
LENGTH = 12

HELD_OUT = frozenset((c, s) for i, c in enumerate(COLORS) for j, s in enumerate(SHAPES) if i % 5 == j % 5)
SEEN_COLORS = torch.tensor([[i for i, c in enumerate(COLORS) if (c, s) not in HELD_OUT] for s in SHAPES])  # (6, 8)

SINGLE, TWO, COUNTING, COLORED, POSITION, COLOR_ATTR = range(len(TAGS))
HAS_TWO_NOUNS = torch.tensor([False, True, False, False, True, True])  # by tag
COLOR_STATED = torch.tensor([[0.0, 0], [0, 0], [0.5, 0], [1, 0], [0.5, 0.5], [1, 1]])  # P(noun's color is stated | tag)
FEWEST, MOST = 2, 4  # objects of a counting scene


@dataclass(frozen=True)
class Rows:
    """Base of dataclasses whose fields are tensors (n, ...) or Rows of length n; indexing selects rows of all fields."""

    def columns(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        return len(self.columns()[0])

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return type(self)(*(column[rows] for column in self.columns()))


@dataclass(frozen=True)
class Captions(Rows):
    """n captions; -1 marks what a caption does not state.

    Attributes:
        tag: (n,) positions in TAGS.
        shape: (n, 2) of the nouns, positions in SHAPES.
        color: (n, 2) of the nouns, positions in COLORS.
        count: (n,) of noun 0.
        relation: (n,) positions in RELATIONS: noun 0 is left of, ... noun 1.
    """

    tag: Tensor
    shape: Tensor
    color: Tensor
    count: Tensor
    relation: Tensor

    def tokens(self) -> Tensor:
        """Return token ids (n, LENGTH)."""
        start = [torch.full_like(self.tag, IDS[word]) for word in ("a", "photo", "of")]
        joined_by = torch.where(self.relation >= 0, IDS["left"] + self.relation, IDS["and"])
        of = torch.where((self.relation == 0) | (self.relation == 1), IDS["of"], 0)
        link = [slot * (self.shape[:, 1] >= 0) for slot in (joined_by, of)]
        slots = torch.stack([*start, *self.noun(0), *link, *self.noun(1), torch.zeros_like(self.tag)], 1)
        return slots.gather(1, (slots == 0).to(torch.uint8).argsort(dim=1, stable=True))  # empty slots to the end

    def noun(self, k: int) -> list[Tensor]:
        """Return three slots of noun k: article or number, color, shape."""
        shape, color = self.shape[:, k], self.color[:, k]
        count = self.count if k == 0 else torch.ones_like(shape)
        word = IDS["circle"] + shape + len(SHAPES) * (count > 1)
        adjective = torch.where(color >= 0, IDS["red"] + color, 0)
        starts_with_vowel = torch.tensor([w[0] in "aeiou" for w in WORDS])[torch.where(adjective > 0, adjective, word)]
        article = torch.where(starts_with_vowel, IDS["an"], IDS["a"])
        number = torch.where(count > 1, IDS[NUMBERS[0]] + count - FEWEST, article)
        return [slot * (shape >= 0) for slot in (number, adjective, word)]

    def prompts(self) -> list[str]:
        return decode(self.tokens())

    def metadata(self) -> list[Metadata]:
        """Return one GenEval prompt per caption; a position's target, noun 1, is its first clause."""
        columns = (column.tolist() for column in self.columns())
        return [to_metadata(*row) for row in zip(*columns, self.prompts(), strict=True)]


def to_metadata(tag: int, shapes: list[int], colors: list[int], count: int, relation: int, prompt: str) -> Metadata:
    named = [COLORS[color] if color >= 0 else None for color in colors]
    first = Clause(SHAPES[shapes[0]], count, named[0])
    if tag == COUNTING:
        return Metadata(TAGS[tag], prompt, (first,), (Clause(first.cls, count + 1),))
    if shapes[1] < 0:
        return Metadata(TAGS[tag], prompt, (first,))
    second = Clause(SHAPES[shapes[1]], 1, named[1])
    if tag == POSITION:
        related = Clause(first.cls, count, first.color, (RELATIONS[relation], 0))
        return Metadata(TAGS[tag], prompt, (second, related))
    return Metadata(TAGS[tag], prompt, (first, second))


def binds_unseen(metadata: Metadata) -> bool:
    """Return whether a prompt binds a color to a shape that training holds out."""
    return any((clause.color, clause.cls) in HELD_OUT for clause in metadata.include)


def all_captions(tag: str, shapes: int = EASY) -> Captions:
    """Return all captions of a tag in GenEval's form, held-out pairs included."""
    one_noun, two_nouns = [(s, -1) for s in range(shapes)], list(permutations(range(shapes), 2))
    uncolored, colors = [(-1, -1)], range(len(COLORS))
    choices: tuple[Any, ...] = {
        "single_object": (one_noun, uncolored, [1], [-1]),
        "two_object": (two_nouns, uncolored, [1], [-1]),
        "counting": (one_noun, uncolored, range(FEWEST, MOST + 1), [-1]),
        "colors": (one_noun, [(c, -1) for c in colors], [1], [-1]),
        "position": (two_nouns, uncolored, [1], range(len(RELATIONS))),
        "color_attr": (two_nouns, list(permutations(colors, 2)), [1], [-1]),
    }[tag]
    table = torch.tensor([(TAGS.index(tag), *s, *c, n, relation) for s, c, n, relation in product(*choices)])
    return Captions(table[:, 0], table[:, 1:3], table[:, 3:5], table[:, 5], table[:, 6])


def draw_captions(n: int, generator: Generator, shapes: int = EASY) -> Captions:
    """Draw n training captions: a uniform tag, then uniform choices among what is not held out."""

    def integers(high: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator)

    tag, first = integers(len(TAGS)), integers(shapes)
    second = (first + 1 + integers(shapes - 1)) % shapes
    color = draw_distinct_colors(torch.stack([first, second], 1), generator)
    stated = torch.rand(n, 2, generator=generator) < COLOR_STATED[tag]
    return Captions(
        tag=tag,
        shape=torch.stack([first, torch.where(HAS_TWO_NOUNS[tag], second, -1)], 1),
        color=torch.where(stated, color, -1),
        count=torch.where(tag == COUNTING, FEWEST + integers(MOST - FEWEST + 1), 1),
        relation=torch.where(tag == POSITION, integers(len(RELATIONS)), -1),
    )


def draw_colors(shape: Tensor, generator: Generator) -> Tensor:
    """Draw a color for every shape (*), uniformly among those not held out."""
    return SEEN_COLORS[shape, torch.randint(SEEN_COLORS.shape[1], shape.shape, generator=generator)]


def draw_distinct_colors(shape: Tensor, generator: Generator) -> Tensor:
    """Draw colors for pairs of shapes (n, 2); where the second equals the first, it becomes another allowed color."""
    color = draw_colors(shape, generator)
    position = (SEEN_COLORS[shape[:, 1]] == color[:, 1:]).to(torch.uint8).argmax(1)
    step = torch.randint(1, SEEN_COLORS.shape[1], position.shape, generator=generator)
    other = SEEN_COLORS[shape[:, 1], (position + step) % SEEN_COLORS.shape[1]]
    return torch.stack([color[:, 0], torch.where(color[:, 0] == color[:, 1], other, color[:, 1])], 1)


def encode(captions: Iterable[str]) -> Tensor:
    """Return token ids (n, LENGTH), int64.

    Raises:
        UserError: a caption is too long or has an unknown word.
    """
    rows = []
    for caption in captions:
        words = caption.lower().split()
        if len(words) > LENGTH:
            raise UserError(f"the caption {caption!r} has {len(words)} words; the maximum is {LENGTH}")
        for word in words:
            if word not in IDS or word == PAD:
                raise UserError(f"unknown word {word!r} in the caption {caption!r}; {hint(word, WORDS[1:])}")
        rows.append([IDS[word] for word in words] + [0] * (LENGTH - len(words)))
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, LENGTH)


def decode(tokens: Tensor) -> list[str]:
    """Return the captions of token ids (n, LENGTH)."""
    return [" ".join(WORDS[i] for i in row if i) for row in tokens.tolist()]
