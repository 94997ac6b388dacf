"""ShapeEval's captions as tensors, and the words that they become.

A caption has one or two nouns of distinct shapes. The tag says what a scene of it must satisfy:

    single_object  one noun               colors      one noun and its colour
    two_object     two nouns              color_attr  two nouns and their colours, which are distinct
    counting       exactly n of one noun  position    noun 0 lies left of, right of, above or below noun 1

Training also states colours, half of the time each, in counting and position; GenEval's prompts never do.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fgm.data.text.shapes.rows import Rows
from fgm.data.text.shapes.vocabulary import EASY, IDS, NUMBERS, SEEN_COLOURS, SHAPES, WORDS, decode

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SINGLE, TWO, COUNTING, COLORS, POSITION, COLOR_ATTR = range(len(TAGS))
PAIRED = torch.tensor([False, True, False, False, True, True])  # tags of two nouns
STATED = torch.tensor([[0.0, 0], [0, 0], [0.5, 0], [1, 0], [0.5, 0.5], [1, 1]])  # P(colour of noun is stated | tag)
RELATIONS = ("left of", "right of", "above", "below")
FEWEST, MOST = 2, 4  # objects of a counting scene


@dataclass(frozen=True)
class Captions(Rows):
    """n captions; -1 stands for what a caption does not say.

    Attributes:
        tag: (n,) places in TAGS.
        shape: (n, 2) of the nouns.
        colour: (n, 2) of the nouns.
        count: (n,) of noun 0.
        relation: (n,) places in RELATIONS.
    """

    tag: Tensor
    shape: Tensor
    colour: Tensor
    count: Tensor
    relation: Tensor

    def tokens(self) -> Tensor:
        """(n, LENGTH): all words in their slots, then the empty slots moved to the end."""
        start = [torch.full_like(self.tag, IDS[word]) for word in ("a", "photo", "of")]
        end = torch.zeros_like(self.tag)
        slots = torch.stack([*start, *noun(self, 0), *link(self), *noun(self, 1), end], 1)
        return slots.gather(1, (slots == 0).to(torch.uint8).argsort(dim=1, stable=True))

    def prompts(self) -> list[str]:
        return decode(self.tokens())


def noun(captions: Captions, k: int) -> list[Tensor]:
    """Article or number, colour, shape: three slots."""
    shape, colour = captions.shape[:, k], captions.colour[:, k]
    count = captions.count if k == 0 else torch.ones_like(shape)
    word = IDS["circle"] + shape + len(SHAPES) * (count > 1)
    tint = torch.where(colour >= 0, IDS["red"] + colour, 0)
    vowel = torch.tensor([w[0] in "aeiou" for w in WORDS])[torch.where(tint > 0, tint, word)]
    article = torch.where(vowel, IDS["an"], IDS["a"])
    number = torch.where(count > 1, IDS[NUMBERS[0]] + count - FEWEST, article)
    return [slot * (shape >= 0) for slot in (number, tint, word)]


def link(captions: Captions) -> list[Tensor]:
    """What stands between two nouns: two slots."""
    relation = captions.relation
    first = torch.where(relation >= 0, IDS["left"] + relation, IDS["and"])
    second = torch.where((relation == 0) | (relation == 1), IDS["of"], 0)
    return [slot * (captions.shape[:, 1] >= 0) for slot in (first, second)]


def draw_captions(n: int, generator: Generator, shapes: int = EASY) -> Captions:
    """n training captions: a uniform tag, then uniform choices among what is not held out."""

    def integers(high: int) -> Tensor:
        return torch.randint(high, (n,), generator=generator)

    tag, first = integers(len(TAGS)), integers(shapes)
    second = (first + 1 + integers(shapes - 1)) % shapes
    colour = draw_distinct_colours(torch.stack([first, second], 1), generator)
    stated = torch.rand(n, 2, generator=generator) < STATED[tag]
    return Captions(
        tag=tag,
        shape=torch.stack([first, torch.where(PAIRED[tag], second, -1)], 1),
        colour=torch.where(stated, colour, -1),
        count=torch.where(tag == COUNTING, FEWEST + integers(MOST - FEWEST + 1), 1),
        relation=torch.where(tag == POSITION, integers(len(RELATIONS)), -1),
    )


def draw_colours(shape: Tensor, generator: Generator) -> Tensor:
    """A colour for every shape (*), uniform among those not held out."""
    return SEEN_COLOURS[shape, torch.randint(SEEN_COLOURS.shape[1], shape.shape, generator=generator)]


def draw_distinct_colours(shape: Tensor, generator: Generator) -> Tensor:
    """The same for pairs (n, 2): where colour 1 equals colour 0, another one that its shape may have."""
    colour = draw_colours(shape, generator)
    taken = (SEEN_COLOURS[shape[:, 1]] == colour[:, 1:]).to(torch.uint8).argmax(1)
    step = torch.randint(1, SEEN_COLOURS.shape[1], taken.shape, generator=generator)
    other = SEEN_COLOURS[shape[:, 1], (taken + step) % SEEN_COLOURS.shape[1]]
    return torch.stack([colour[:, 0], torch.where(colour[:, 0] == colour[:, 1], other, colour[:, 1])], 1)
