"""Scenes of ShapeEval: objects that satisfy a caption, drawn at random, and their exact renders.

Objects of radius r lie in the box [-r, r]^2 about their center. Radii are uniform in the canvas's range, centers are
uniform where the box keeps MARGIN from the border, both conditional on

    every two boxes are at least `gap` apart on one of the axes, and
    in a position scene the stated axis separates the centers DOMINANCE times as far as the other one,

by rejection: proposals are independent, and the first that fits is used. A color is its palette entry with uniform
jitter of +-JITTER in each channel. Colors that a caption does not state avoid the held-out pairs.

Pixels are rendered from the exact area that a shape covers. A shape is symmetric about its vertical axis, and its
half-width w(y) defines it, with y in [-1, 1] pointing down:

    circle    (1 - y^2)^1/2        triangle  (1 + y) / 2                         diamond  1 - |y|
    square    1                    cross     1 where |y| < 1/3, else 1/3         ring     circle minus one of radius 1/2

It is cut into STRIPS of equal height and constant width, the mean of w over the strip. A strip is a rectangle, and the
area of a rectangle within a pixel is a product of two overlaps, so the coverage of all pixels is a matrix product:

    coverage[y, x] = sum_m overlap([row y], [strip m]) overlap([column x], [-w_m, w_m])

Strips are at most a quarter of a pixel high at 32 pixels and half of one at 64; STRIPS is a multiple of 3, so that the
arms of a cross end at a strip's border. Areas are exact, and so are squares and crosses.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from fgm.data.shapes.captions import COUNTING, EASY, MOST, PALETTE, Captions, Rows, draw_captions, draw_colors
from fgm.utils.errors import UserError

OBJECTS = MOST
MARGIN, DOMINANCE, JITTER = 1.0, 1.6, 8.0
PROPOSALS, MOST_TRIES = 2048, 512  # per round: of all scenes together, of one scene
FIRST, SECOND = torch.tensor(list(combinations(range(OBJECTS), 2))).T
DIRECTIONS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # of RELATIONS; y points down

BACKGROUND = 128.0
STRIPS = 48
CHUNK = 64  # scenes rendered at once: what fits into a core's cache is three times as fast


@dataclass(frozen=True)
class Canvas:
    """Lengths in pixels: side, smallest and largest radius, least gap between boxes."""

    size: int
    smallest: float
    largest: float
    gap: float


CANVASES = {32: Canvas(32, 4, 6, 2), 64: Canvas(64, 7, 12, 3)}


def canvas_of(size: int) -> Canvas:
    if size not in CANVASES:
        raise UserError(f"size = {size}: scenes of shapes are {' or '.join(map(str, CANVASES))} pixels wide")
    return CANVASES[size]


@dataclass(frozen=True)
class Scenes(Rows):
    """n scenes of up to OBJECTS objects, which come first and in the order of the caption's nouns.

    Attributes:
        captions: what holds in them.
        shape: (n, 4), -1 where there is no object.
        color: (n, 4) positions in the palette.
        rgb: (n, 4, 3), 0 to 255.
        center: (n, 4, 2), x and y in pixels from the upper left corner.
        radius: (n, 4) in pixels.
    """

    captions: Captions
    shape: Tensor
    color: Tensor
    rgb: Tensor
    center: Tensor
    radius: Tensor


def draw_scenes(n: int, generator: Generator, size: int = 32, shapes: int = EASY) -> Scenes:
    """Draw n training scenes with their captions."""
    return draw_scenes_of(draw_captions(n, generator, shapes), generator, canvas_of(size))


def draw_scenes_of(captions: Captions, generator: Generator, canvas: Canvas) -> Scenes:
    """Draw one scene for each caption."""
    shape = shapes_of(captions)
    color = draw_colors(shape.clamp_min(0), generator)
    color[:, :2] = torch.where(captions.color >= 0, captions.color, color[:, :2])
    same_color = (captions.tag == COUNTING) & (captions.color[:, 0] >= 0)
    color = torch.where(same_color[:, None], color[:, :1], color)
    jitter = JITTER * (2 * torch.rand(*color.shape, 3, generator=generator) - 1)
    center, radius = place(shape >= 0, captions.relation, generator, canvas)
    return Scenes(captions, shape, color, (PALETTE[color] + jitter).clamp(0, 255), center, radius)


def shapes_of(captions: Captions) -> Tensor:
    """Return the shapes (n, OBJECTS) of the objects that captions name, -1 elsewhere."""
    repeated = torch.where(torch.arange(OBJECTS) < captions.count[:, None], captions.shape[:, :1], -1)
    return torch.where((captions.tag == COUNTING)[:, None], repeated, pad(captions.shape, (0, OBJECTS - 2), value=-1))


def place(present: Tensor, relation: Tensor, generator: Generator, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Draw centers (n, OBJECTS, 2) and radii (n, OBJECTS) of scenes with objects where present (n, OBJECTS)."""
    n = len(present)
    center, radius, pending = torch.zeros(n, OBJECTS, 2), torch.zeros(n, OBJECTS), torch.arange(n)
    while len(pending):
        tries = min(max(PROPOSALS // len(pending), 1), MOST_TRIES)
        u = torch.rand(3, len(pending), tries, OBJECTS, generator=generator)
        r = canvas.smallest + (canvas.largest - canvas.smallest) * u[0]
        border = r + MARGIN
        x, y = (border + (canvas.size - 2 * border) * v for v in u[1:])
        c = torch.stack([x, y], -1)
        fits = apart(c, r, present[pending], canvas.gap) & satisfies(c, relation[pending])
        accepted, first = fits.any(1), fits.to(torch.uint8).argmax(1)
        rows, chosen = pending[accepted], (torch.nonzero(accepted)[:, 0], first[accepted])
        center[rows], radius[rows] = c[chosen], r[chosen]
        pending = pending[~accepted]
    return center, radius


def apart(center: Tensor, radius: Tensor, present: Tensor, gap: float) -> Tensor:
    """Return whether all pairs of present (n, OBJECTS) objects keep the gap, (n, tries)."""
    distance = (center[..., FIRST, :] - center[..., SECOND, :]).abs().amax(-1)
    both = (present[:, FIRST] & present[:, SECOND])[:, None]
    return ((distance >= radius[..., FIRST] + radius[..., SECOND] + gap) | ~both).all(-1)


def satisfies(center: Tensor, relation: Tensor) -> Tensor:
    """Return whether object 0 has its relation (n,) to object 1, if the caption states one, (n, tries)."""
    offset, direction = center[..., 0, :] - center[..., 1, :], DIRECTIONS[relation][:, None]
    along, across = (offset * direction).sum(-1), (offset * direction.flip(-1)).sum(-1).abs()
    return (along >= DOMINANCE * across) | (relation < 0)[:, None]


def half_widths(y: Tensor) -> Tensor:
    """Return w(y) of all shapes, (6, *y.shape)."""
    disc, bar = (1 - y.square()).clamp_min(0).sqrt(), torch.where(y.abs() < 1 / 3, 1.0, 1 / 3)
    return torch.stack([disc, torch.ones_like(y), (1 + y) / 2, bar, 1 - y.abs(), disc])


def strip_means(width: Tensor) -> Tensor:
    return width.unflatten(-1, (STRIPS, -1)).mean(-1).float()


FINE = (torch.arange(STRIPS * 256, dtype=torch.float64) + 0.5) / (STRIPS * 128) - 1
OUTER = strip_means(half_widths(FINE))  # (6, STRIPS)
HOLES = torch.zeros_like(OUTER)
HOLES[5] = strip_means((0.25 - FINE.square()).clamp_min(0).sqrt())
STRIP_EDGES = torch.linspace(-1, 1, STRIPS + 1)
STRIP_AREAS = 4 / STRIPS * (OUTER - HOLES)
AREAS = STRIP_AREAS.sum(1)  # (6,) at radius 1
CENTROIDS = (STRIP_AREAS * (STRIP_EDGES[1:] + STRIP_EDGES[:-1]) / 2).sum(1) / AREAS  # (6,) y of the center of mass


def overlap(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Return the length of [low, high] within each pixel [i, i + 1]: (*) to (*, size)."""
    pixel = torch.arange(size, dtype=low.dtype, device=low.device)
    low, high = low[..., None].clamp_min(pixel), high[..., None].clamp_max(pixel + 1)
    return (high - low).clamp_min_(0)


def coverage(shape: Tensor, center: Tensor, radius: Tensor, size: int) -> Tensor:
    """Return the share of each pixel that a shape covers: shape (*), center (*, 2), radius (*) to (*, size, size)."""
    x, y, radius = center[..., :1], center[..., 1:], radius[..., None]
    widths, holes, edges = (table.to(x.device) for table in (OUTER[shape], HOLES[shape], STRIP_EDGES))
    edges = y + radius * edges
    rows = overlap(edges[..., :-1], edges[..., 1:], size)
    columns = overlap(x - radius * widths, x + radius * widths, size)
    if holes.any():
        columns -= overlap(x - radius * holes, x + radius * holes, size)
    return rows.mT @ columns


def render(scenes: Scenes, size: int = 32) -> Tensor:
    """Render images (n, 3, size, size) in [-1, 1]; objects do not overlap, so their coverages add."""
    images = [torch.empty(0, 3, size, size)]
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start : start + CHUNK]
        present = chunk.shape >= 0
        covered = torch.zeros(*present.shape, size, size)
        covered[present] = coverage(chunk.shape[present], chunk.center[present], chunk.radius[present], size)
        pixels = BACKGROUND + (chunk.rgb - BACKGROUND).mT @ covered.flatten(2)
        images.append((pixels / 127.5 - 1).unflatten(2, (size, size)))
    return torch.cat(images)
