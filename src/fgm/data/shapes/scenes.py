"""Scenes: what a caption leaves open, drawn at random.

An object of radius r lies in the box [-r, r]^2 about its centre. Radii are uniform in the canvas's range and centres
uniform where the box keeps MARGIN from the border, given that

    every two boxes are at least `gap` apart on one of the axes, and
    in a position scene the stated axis separates the centres DOMINANCE times as far as the other one,

by rejection: proposals are independent and the first that fits is taken. A colour is its palette entry with uniform
jitter of +-JITTER in each channel. Colours that a caption does not state avoid the held-out pairs.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Generator, Tensor

from fgm.data.text.shapes.grammar import COUNTING, MOST, Captions, draw_captions, draw_colours
from fgm.data.text.shapes.rows import Rows
from fgm.data.text.shapes.vocabulary import EASY, PALETTE
from fgm.utils.errors import UserError

OBJECTS = MOST
MARGIN, DOMINANCE, JITTER = 1.0, 1.6, 8.0
PROPOSALS, MOST_TRIES = 2048, 512  # in a round: of all scenes, of one
FIRST, SECOND = torch.tensor(list(combinations(range(OBJECTS), 2))).T
TOWARDS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # of RELATIONS; y points down


@dataclass(frozen=True)
class Canvas:
    """Lengths in pixels."""

    size: int
    smallest: float
    largest: float
    gap: float


CANVASES = {32: Canvas(32, 4, 6, 2), 64: Canvas(64, 7, 12, 3)}


def canvas_of(size: int) -> Canvas:
    if size not in CANVASES:
        raise UserError(f"scenes of shapes are {' or '.join(map(str, CANVASES))} pixels wide, not {size}")
    return CANVASES[size]


@dataclass(frozen=True)
class Scenes(Rows):
    """n scenes of up to OBJECTS objects; the objects of a scene come first, in the order of its nouns.

    Attributes:
        captions: what holds in them.
        shape: (n, 4), -1 where there is no object.
        colour: (n, 4) places in the palette.
        rgb: (n, 4, 3), 0 to 255.
        centre: (n, 4, 2), x and y in pixels from the upper left corner.
        radius: (n, 4) in pixels.
    """

    captions: Captions
    shape: Tensor
    colour: Tensor
    rgb: Tensor
    centre: Tensor
    radius: Tensor


def draw_scenes(n: int, generator: Generator, size: int = 32, shapes: int = EASY) -> Scenes:
    """n training scenes with their captions."""
    return fill(draw_captions(n, generator, shapes), generator, canvas_of(size))


def fill(captions: Captions, generator: Generator, canvas: Canvas) -> Scenes:
    """One scene for each caption."""
    shape = objects_of(captions)
    colour = draw_colours(shape.clamp_min(0), generator)
    colour[:, :2] = torch.where(captions.colour >= 0, captions.colour, colour[:, :2])
    alike = (captions.tag == COUNTING) & (captions.colour[:, 0] >= 0)
    colour = torch.where(alike[:, None], colour[:, :1], colour)
    jitter = JITTER * (2 * torch.rand(*colour.shape, 3, generator=generator) - 1)
    centre, radius = place(shape >= 0, captions.relation, generator, canvas)
    return Scenes(captions, shape, colour, (PALETTE[colour] + jitter).clamp(0, 255), centre, radius)


def objects_of(captions: Captions) -> Tensor:
    """Shapes (n, 4) of the objects that a caption names, -1 beyond."""
    repeated = torch.where(torch.arange(OBJECTS) < captions.count[:, None], captions.shape[:, :1], -1)
    named = torch.nn.functional.pad(captions.shape, (0, OBJECTS - 2), value=-1)
    return torch.where((captions.tag == COUNTING)[:, None], repeated, named)


def place(present: Tensor, relation: Tensor, generator: Generator, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Centres (n, 4, 2) and radii (n, 4) of scenes with objects where present (n, 4)."""
    n = len(present)
    centre, radius, pending = torch.zeros(n, OBJECTS, 2), torch.zeros(n, OBJECTS), torch.arange(n)
    while len(pending):
        tries = min(max(PROPOSALS // len(pending), 1), MOST_TRIES)
        c, r = propose((len(pending), tries), generator, canvas)
        fits = apart(c, r, present[pending], canvas.gap) & obeys(c, relation[pending])
        found, first = fits.any(1), fits.to(torch.uint8).argmax(1)
        rows, chosen = pending[found], (torch.nonzero(found)[:, 0], first[found])
        centre[rows], radius[rows] = c[chosen], r[chosen]
        pending = pending[~found]
    return centre, radius


def propose(shape: tuple[int, ...], generator: Generator, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Independent centres (*shape, 4, 2) and radii (*shape, 4)."""
    u = torch.rand(3, *shape, OBJECTS, generator=generator)
    radius = canvas.smallest + (canvas.largest - canvas.smallest) * u[0]
    reach = radius + MARGIN
    return torch.stack([reach + (canvas.size - 2 * reach) * u[1], reach + (canvas.size - 2 * reach) * u[2]], -1), radius


def apart(centre: Tensor, radius: Tensor, present: Tensor, gap: float) -> Tensor:
    """Whether all pairs of present (n, 4) objects keep the gap, (n, tries)."""
    distance = (centre[..., FIRST, :] - centre[..., SECOND, :]).abs().amax(-1)
    both = (present[:, FIRST] & present[:, SECOND])[:, None]
    return ((distance >= radius[..., FIRST] + radius[..., SECOND] + gap) | ~both).all(-1)


def obeys(centre: Tensor, relation: Tensor) -> Tensor:
    """Whether object 0 lies as the relation (n,) says of object 1, (n, tries)."""
    offset, towards = centre[..., 0, :] - centre[..., 1, :], TOWARDS[relation][:, None]
    along, across = (offset * towards).sum(-1), (offset * towards.flip(-1)).sum(-1).abs()
    return (along >= DOMINANCE * across) | (relation < 0)[:, None]
