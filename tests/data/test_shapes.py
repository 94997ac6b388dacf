"""Scenes obey their captions, renders have the right area, and held-out bindings stay out."""

import math

import pytest
import torch
from torch import Tensor

from fgm.data.shapes.dataset import Shapes
from fgm.data.shapes.render import AREAS, coverage, render
from fgm.data.shapes.scenes import CANVASES, DOMINANCE, JITTER, MARGIN, Scenes, canvas_of, draw_scenes, fill
from fgm.data.text.shapes.grammar import COLOR_ATTR, COUNTING, POSITION, RELATIONS, TAGS, draw_captions
from fgm.data.text.shapes.metadata import every, metadata, parse
from fgm.data.text.shapes.vocabulary import (
    COLOUR_NAMES,
    EASY,
    HARD,
    HELD_OUT,
    LENGTH,
    PALETTE,
    SEEN_COLOURS,
    SHAPE_NAMES,
    WORDS,
    decode,
    encode,
)
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

MODES = [(32, EASY), (64, HARD)]


@pytest.fixture(scope="module", params=MODES, ids=["easy-32", "hard-64"])
def world(request: pytest.FixtureRequest) -> tuple[Scenes, int]:
    size, shapes = request.param
    return draw_scenes(4000, keyed_generator("test", index=0), size, shapes), size


def pairs_of(scenes: Scenes) -> set[tuple[str, str]]:
    present = scenes.shape >= 0
    places = zip(scenes.colour[present].tolist(), scenes.shape[present].tolist(), strict=True)
    return {(COLOUR_NAMES[c], SHAPE_NAMES[s]) for c, s in places}


# words


@pytest.mark.parametrize("tag", TAGS)
def test_tokens_and_text_are_one(tag: str) -> None:
    captions = every(tag, HARD)
    prompts = captions.prompts()
    assert len(set(prompts)) == len(captions)
    assert torch.equal(encode(prompts), captions.tokens())
    assert decode(encode(prompts)) == prompts


def test_captions_read_as_english() -> None:
    said = {
        "position": "a photo of a cross right of a circle",
        "colors": "a photo of an orange circle",
        "counting": "a photo of three crosses",
        "color_attr": "a photo of a red square and an orange triangle",
        "two_object": "a photo of a triangle and a square",
    }
    assert all(prompt in every(tag).prompts() for tag, prompt in said.items())


def test_the_vocabulary_is_small_and_the_empty_caption_is_padding() -> None:
    assert len(WORDS) == len(set(WORDS)) == 35
    assert torch.equal(encode([""]), torch.zeros(1, LENGTH, dtype=torch.int64))


def test_an_unknown_word_is_refused_with_near_ones() -> None:
    with pytest.raises(UserError, match=r"'sqare'.*did you mean.*square"):
        encode(["a photo of a red sqare"])
    with pytest.raises(UserError, match=r"'zebra'.*there are a, an"):
        encode(["a photo of a zebra"])
    with pytest.raises(UserError, match="13 words; at most 12"):
        encode(["a " * 13])


# metadata


@pytest.mark.parametrize("tag", TAGS)
def test_metadata_there_and_back(tag: str) -> None:
    captions = every(tag, HARD)
    back = parse(metadata(captions))
    assert all(torch.equal(a, b) for a, b in zip(captions.columns(), back.columns(), strict=True))


def test_training_captions_there_and_back() -> None:
    captions = draw_captions(2000, keyed_generator("test", index=1), HARD)
    assert torch.equal(parse(metadata(captions)).tokens(), captions.tokens())


def test_metadata_is_genevals() -> None:
    by_prompt = {line["prompt"]: line for tag in TAGS for line in metadata(every(tag))}
    assert by_prompt["a photo of a circle above a square"] == {
        "tag": "position",
        "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of a circle above a square",
    }
    assert by_prompt["a photo of two crosses"] == {
        "tag": "counting",
        "include": [{"class": "cross", "count": 2}],
        "exclude": [{"class": "cross", "count": 3}],
        "prompt": "a photo of two crosses",
    }


def test_metadata_that_no_caption_has_is_refused() -> None:
    line = metadata(every("counting"))[0]
    for wrong in (
        line | {"tag": "texture"},
        line | {"include": [{"class": "hexagon", "count": 2}]},
        line | {"include": [{"class": "circle", "count": 5}]},
        line | {"include": []},
        line | {"prompt": "a photo of two squares"},
        {"tag": "counting"},
    ):
        with pytest.raises(UserError, match="metadata"):
            parse([wrong])


# held-out bindings


def test_a_fifth_of_the_pairs_is_held_out() -> None:
    assert [len([p for p in HELD_OUT if p[1] in SHAPE_NAMES[:n]]) for n in (EASY, HARD)] == [8, 12]
    assert SEEN_COLOURS.shape == (HARD, 8)


@pytest.mark.parametrize("shapes", [EASY, HARD])
def test_training_never_binds_a_held_out_pair_and_binds_every_other(shapes: int) -> None:
    captions = draw_captions(20_000, keyed_generator("test", index=2), shapes)
    stated = (captions.colour >= 0) & (captions.shape >= 0)
    places = zip(captions.colour[stated].tolist(), captions.shape[stated].tolist(), strict=True)
    bound = {(COLOUR_NAMES[c], SHAPE_NAMES[s]) for c, s in places}
    assert bound == {(c, s) for c in COLOUR_NAMES for s in SHAPE_NAMES[:shapes]} - HELD_OUT


def test_training_scenes_show_no_held_out_pair(world: tuple[Scenes, int]) -> None:
    assert not pairs_of(world[0]) & HELD_OUT


def test_evaluation_asks_for_held_out_pairs_and_the_truth_shows_them() -> None:
    captions = every("colors")
    scenes = fill(captions, keyed_generator("test", index=3), canvas_of(32))
    assert pairs_of(scenes) == {(c, s) for c in COLOUR_NAMES for s in SHAPE_NAMES[:EASY]}


# scenes


def test_tags_are_equally_frequent_and_shapes_of_a_caption_distinct(world: tuple[Scenes, int]) -> None:
    captions = world[0].captions
    share = captions.tag.bincount() / len(captions)
    assert torch.allclose(share, torch.full((6,), 1 / 6), atol=5 * math.sqrt(5 / 36 / len(captions)))
    assert (captions.shape[:, 0] != captions.shape[:, 1]).all()
    pairs = captions.colour[captions.tag == COLOR_ATTR]
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_scenes_show_what_their_captions_say(world: tuple[Scenes, int]) -> None:
    scenes, said = world[0], world[0].captions
    counted = said.tag == COUNTING
    objects = (scenes.shape >= 0).sum(1)
    assert torch.equal(objects, torch.where(counted, said.count, 1 + (said.shape[:, 1] >= 0).long()))
    assert torch.equal(scenes.shape[~counted, :2], said.shape[~counted])
    alike = (scenes.shape == said.shape[:, :1]) | (scenes.shape < 0)
    assert alike[counted].all()
    stated = said.colour >= 0
    assert torch.equal(scenes.colour[:, :2][stated], said.colour[stated])
    tinted = counted & stated[:, 0]
    assert (scenes.colour[tinted] == said.colour[tinted, :1]).all()
    assert ((scenes.rgb - PALETTE[scenes.colour]).abs() <= JITTER).all()


def test_boxes_keep_the_gap_and_the_margin(world: tuple[Scenes, int]) -> None:
    scenes, size = world
    canvas, present = CANVASES[size], scenes.shape >= 0
    low, high = scenes.centre - scenes.radius[..., None], scenes.centre + scenes.radius[..., None]
    assert (low[present] >= MARGIN - 1e-4).all() and (high[present] <= size - MARGIN + 1e-4).all()
    assert (scenes.radius[present] >= canvas.smallest).all() and (scenes.radius[present] <= canvas.largest).all()
    for i in range(4):
        for j in range(i):
            both = present[:, i] & present[:, j]
            between = torch.maximum(low[both, i] - high[both, j], low[both, j] - high[both, i]).amax(-1)
            assert (between >= canvas.gap - 1e-4).all()


def test_positions_are_unambiguous(world: tuple[Scenes, int]) -> None:
    scenes = world[0][world[0].captions.tag == POSITION]
    x, y = (scenes.centre[:, 0] - scenes.centre[:, 1]).T
    along = {"left of": -x, "right of": x, "above": -y, "below": y}
    across = {"left of": y, "right of": y, "above": x, "below": x}
    for k, relation in enumerate(RELATIONS):
        stands = scenes.captions.relation == k
        assert (along[relation][stands] >= DOMINANCE * across[relation][stands].abs() - 1e-4).all()


def test_an_odd_size_is_refused() -> None:
    with pytest.raises(UserError, match="32 or 64 pixels wide, not 48"):
        draw_scenes(1, keyed_generator("test", index=4), size=48)


# renders


@pytest.mark.parametrize("size", [32, 64])
def test_coverage_has_the_area_of_the_shape(size: int) -> None:
    exact = torch.tensor([math.pi, 4, 2, 20 / 9, 2, 0.75 * math.pi])
    assert torch.allclose(AREAS, exact, rtol=1e-4)
    shape, centre, radius = random_objects(600, size)
    area = coverage(shape, centre, radius, size).sum((1, 2))
    assert torch.allclose(area, exact[shape] * radius**2, rtol=1e-3)


def test_coverage_is_what_supersampling_finds() -> None:
    shape, centre, radius = random_objects(60, 32)
    assert (coverage(shape, centre, radius, 32) - supersampled(shape, centre, radius, 32)).abs().amax() < 0.1


def random_objects(n: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    canvas, generator = CANVASES[size], keyed_generator("objects", index=size)
    radius = canvas.smallest + (canvas.largest - canvas.smallest) * torch.rand(n, generator=generator)
    centre = size / 2 + 4 * torch.rand(n, 2, generator=generator) - 2
    return torch.arange(n) % HARD, centre, radius


def supersampled(shape: Tensor, centre: Tensor, radius: Tensor, size: int, factor: int = 16) -> Tensor:
    """Shares of points within each shape, said without half-widths."""
    points = (torch.arange(size * factor) + 0.5) / factor
    x = ((points - centre[:, :1]) / radius[:, None])[:, None, :]
    y = ((points - centre[:, 1:]) / radius[:, None])[:, :, None]
    disc, box = x**2 + y**2 <= 1, (x.abs() <= 1) & (y.abs() <= 1)
    inside = torch.stack(
        [
            disc,
            box,
            box & (2 * x.abs() <= 1 + y),
            box & ((x.abs() <= 1 / 3) | (y.abs() <= 1 / 3)),
            x.abs() + y.abs() <= 1,
            disc & (x**2 + y**2 >= 0.25),
        ]
    )
    chosen = inside[shape, torch.arange(len(shape))].float()
    return torch.nn.functional.avg_pool2d(chosen[:, None], factor)[:, 0]


def test_the_inside_has_the_colour_and_the_outside_is_grey() -> None:
    scenes = fill(every("colors"), keyed_generator("test", index=5), canvas_of(32))
    levels = (render(scenes) + 1) * 127.5
    assert torch.allclose(levels[:, :, 0], torch.tensor(128.0))
    x, y = scenes.centre[:, 0].long().T
    inside = levels[torch.arange(len(scenes)), :, y, x]
    assert torch.allclose(inside[scenes.shape[:, 0] < 2], scenes.rgb[scenes.shape[:, 0] < 2, 0], atol=1e-2)


def test_the_training_set_pairs_images_with_tokens() -> None:
    data = Shapes()
    images, tokens = data.draw(32, keyed_generator("test", index=6))
    again, _ = data.draw(32, keyed_generator("test", index=6))
    assert images.shape == (32, *data.shape) and tokens.shape == (32, LENGTH) and tokens.dtype == torch.int64
    assert images.dtype == torch.float32 and images.abs().amax() <= 1 and torch.equal(images, again)
    assert 0.1 < data.std < 0.5
