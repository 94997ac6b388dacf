"""Scenes satisfy their captions, renders have the exact area, and held-out pairs never occur in training."""

import math

import pytest
import torch
from torch import Tensor

from fgm.data.geneval import COLORS, RELATIONS, TAGS, Clause, Metadata, parse_metadata
from fgm.data.shapes.captions import (
    COLOR_ATTR,
    COUNTING,
    EASY,
    HARD,
    HELD_OUT,
    LENGTH,
    PALETTE,
    POSITION,
    SEEN_COLORS,
    SHAPES,
    VOCABULARY,
    WORDS,
    all_captions,
    decode,
    draw_captions,
    encode,
)
from fgm.data.shapes.dataset import Shapes
from fgm.data.shapes.scenes import (
    AREAS,
    CANVASES,
    DOMINANCE,
    JITTER,
    MARGIN,
    Scenes,
    canvas_of,
    coverage,
    draw_scenes,
    draw_scenes_of,
    render,
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
    places = zip(scenes.color[present].tolist(), scenes.shape[present].tolist(), strict=True)
    return {(COLORS[c], SHAPES[s]) for c, s in places}


# words


@pytest.mark.parametrize("tag", TAGS)
def test_tokens_and_text_are_equivalent(tag: str) -> None:
    captions = all_captions(tag, HARD)
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
    assert all(prompt in all_captions(tag).prompts() for tag, prompt in said.items())


def test_the_vocabulary_is_small_and_the_empty_caption_is_padding() -> None:
    assert len(WORDS) == len(set(WORDS)) == 35
    assert torch.equal(encode([""]), torch.zeros(1, LENGTH, dtype=torch.int64))


def test_unknown_word_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"'sqare'.*did you mean.*square"):
        encode(["a photo of a red sqare"])
    with pytest.raises(UserError, match=r"'zebra'.*there are a, an"):
        encode(["a photo of a zebra"])
    with pytest.raises(UserError, match="13 words; the maximum is 12"):
        encode(["a " * 13])


# metadata


@pytest.mark.parametrize("tag", TAGS)
def test_metadata_passes_the_schema_and_has_the_tag(tag: str) -> None:
    for metadata in all_captions(tag, HARD).metadata():
        assert parse_metadata(metadata.line(), "here", VOCABULARY) == metadata and metadata.tag == tag


def test_metadata_has_genevals_form() -> None:
    by_prompt = {metadata.prompt: metadata for tag in TAGS for metadata in all_captions(tag).metadata()}
    prompt = "a photo of a circle above a square"
    assert by_prompt[prompt] == Metadata(
        "position", prompt, (Clause("square"), Clause("circle", position=("above", 0)))
    )
    prompt = "a photo of two crosses"
    assert by_prompt[prompt] == Metadata("counting", prompt, (Clause("cross", 2),), (Clause("cross", 3),))
    prompt = "a photo of a red square and an orange triangle"
    clauses = Clause("square", color="red"), Clause("triangle", color="orange")
    assert by_prompt[prompt] == Metadata("color_attr", prompt, clauses)


# held-out pairs


def test_one_fifth_of_the_pairs_is_held_out() -> None:
    assert [len([p for p in HELD_OUT if p[1] in SHAPES[:n]]) for n in (EASY, HARD)] == [8, 12]
    assert SEEN_COLORS.shape == (HARD, 8)


@pytest.mark.parametrize("shapes", [EASY, HARD])
def test_training_captions_have_every_pair_but_the_held_out_ones(shapes: int) -> None:
    captions = draw_captions(20_000, keyed_generator("test", index=2), shapes)
    stated = (captions.color >= 0) & (captions.shape >= 0)
    places = zip(captions.color[stated].tolist(), captions.shape[stated].tolist(), strict=True)
    bound = {(COLORS[c], SHAPES[s]) for c, s in places}
    assert bound == {(c, s) for c in COLORS for s in SHAPES[:shapes]} - HELD_OUT


def test_training_scenes_show_no_held_out_pair(world: tuple[Scenes, int]) -> None:
    assert not pairs_of(world[0]) & HELD_OUT


def test_evaluation_prompts_and_scenes_include_held_out_pairs() -> None:
    captions = all_captions("colors")
    scenes = draw_scenes_of(captions, keyed_generator("test", index=3), canvas_of(32))
    assert pairs_of(scenes) == {(c, s) for c in COLORS for s in SHAPES[:EASY]}


# scenes


def test_tags_are_equally_frequent_and_shapes_of_a_caption_distinct(world: tuple[Scenes, int]) -> None:
    captions = world[0].captions
    share = captions.tag.bincount() / len(captions)
    assert torch.allclose(share, torch.full((6,), 1 / 6), atol=5 * math.sqrt(5 / 36 / len(captions)))
    assert (captions.shape[:, 0] != captions.shape[:, 1]).all()
    pairs = captions.color[captions.tag == COLOR_ATTR]
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_scenes_satisfy_their_captions(world: tuple[Scenes, int]) -> None:
    scenes, said = world[0], world[0].captions
    counted = said.tag == COUNTING
    objects = (scenes.shape >= 0).sum(1)
    assert torch.equal(objects, torch.where(counted, said.count, 1 + (said.shape[:, 1] >= 0).long()))
    assert torch.equal(scenes.shape[~counted, :2], said.shape[~counted])
    same_shape = (scenes.shape == said.shape[:, :1]) | (scenes.shape < 0)
    assert same_shape[counted].all()
    stated = said.color >= 0
    assert torch.equal(scenes.color[:, :2][stated], said.color[stated])
    colored = counted & stated[:, 0]
    assert (scenes.color[colored] == said.color[colored, :1]).all()
    assert ((scenes.rgb - PALETTE[scenes.color]).abs() <= JITTER).all()


def test_boxes_keep_the_gap_and_the_margin(world: tuple[Scenes, int]) -> None:
    scenes, size = world
    canvas, present = CANVASES[size], scenes.shape >= 0
    low, high = scenes.center - scenes.radius[..., None], scenes.center + scenes.radius[..., None]
    assert (low[present] >= MARGIN - 1e-4).all() and (high[present] <= size - MARGIN + 1e-4).all()
    assert (scenes.radius[present] >= canvas.smallest).all() and (scenes.radius[present] <= canvas.largest).all()
    for i in range(4):
        for j in range(i):
            both = present[:, i] & present[:, j]
            between = torch.maximum(low[both, i] - high[both, j], low[both, j] - high[both, i]).amax(-1)
            assert (between >= canvas.gap - 1e-4).all()


def test_positions_are_unambiguous(world: tuple[Scenes, int]) -> None:
    scenes = world[0][world[0].captions.tag == POSITION]
    x, y = (scenes.center[:, 0] - scenes.center[:, 1]).T
    along = {"left of": -x, "right of": x, "above": -y, "below": y}
    across = {"left of": y, "right of": y, "above": x, "below": x}
    for k, relation in enumerate(RELATIONS):
        rows = scenes.captions.relation == k
        assert (along[relation][rows] >= DOMINANCE * across[relation][rows].abs() - 1e-4).all()


def test_other_sizes_are_an_error() -> None:
    with pytest.raises(UserError, match=r"size = 48: .* 32 or 64 pixels wide"):
        draw_scenes(1, keyed_generator("test", index=4), size=48)


# renders


@pytest.mark.parametrize("size", [32, 64])
def test_coverage_has_the_area_of_the_shape(size: int) -> None:
    exact = torch.tensor([math.pi, 4, 2, 20 / 9, 2, 0.75 * math.pi])
    assert torch.allclose(AREAS, exact, rtol=1e-4)
    shape, center, radius = random_objects(600, size)
    area = coverage(shape, center, radius, size).sum((1, 2))
    assert torch.allclose(area, exact[shape] * radius**2, rtol=1e-3)


def test_coverage_agrees_with_supersampling() -> None:
    shape, center, radius = random_objects(60, 32)
    assert (coverage(shape, center, radius, 32) - supersampled(shape, center, radius, 32)).abs().amax() < 0.1


def random_objects(n: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    canvas, generator = CANVASES[size], keyed_generator("objects", index=size)
    radius = canvas.smallest + (canvas.largest - canvas.smallest) * torch.rand(n, generator=generator)
    center = size / 2 + 4 * torch.rand(n, 2, generator=generator) - 2
    return torch.arange(n) % HARD, center, radius


def supersampled(shape: Tensor, center: Tensor, radius: Tensor, size: int, factor: int = 16) -> Tensor:
    """Share of points within each shape, without half-widths."""
    points = (torch.arange(size * factor) + 0.5) / factor
    x = ((points - center[:, :1]) / radius[:, None])[:, None, :]
    y = ((points - center[:, 1:]) / radius[:, None])[:, :, None]
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


def test_objects_have_their_color_on_gray() -> None:
    scenes = draw_scenes_of(all_captions("colors"), keyed_generator("test", index=5), canvas_of(32))
    levels = (render(scenes) + 1) * 127.5
    assert torch.allclose(levels[:, :, 0], torch.tensor(128.0))
    x, y = scenes.center[:, 0].long().T
    inside = levels[torch.arange(len(scenes)), :, y, x]
    assert torch.allclose(inside[scenes.shape[:, 0] < 2], scenes.rgb[scenes.shape[:, 0] < 2, 0], atol=1e-2)


def test_the_training_set_pairs_images_with_tokens() -> None:
    data = Shapes()
    images, tokens = data.draw(32, keyed_generator("test", index=6))
    again, _ = data.draw(32, keyed_generator("test", index=6))
    assert images.shape == (32, *data.shape) and tokens.shape == (32, LENGTH) and tokens.dtype == torch.int64
    assert images.dtype == torch.float32 and images.abs().amax() <= 1 and torch.equal(images, again)
    assert 0.1 < data.std < 0.5
