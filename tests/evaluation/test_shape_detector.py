"""The detector reads the truth without error, bears a blur, and tells captions apart; questions are fairly dealt."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fgm.data.pixels import quantise
from fgm.data.shapes.render import render
from fgm.data.shapes.scenes import Scenes, canvas_of, fill
from fgm.data.text.geneval.prompts import parse_metadata
from fgm.data.text.shapes.grammar import TAGS
from fgm.data.text.shapes.metadata import Metadata, binds_unseen, parse
from fgm.data.text.shapes.vocabulary import COLOUR_NAMES, EASY, HARD, SHAPE_NAMES
from fgm.evaluation.geneval.rules import judge
from fgm.evaluation.shape_detector import ShapeDetector, legibility, legible
from fgm.evaluation.shape_prompts import VOCABULARY, questions
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

PER_TAG = 60
World = tuple[list[Metadata], Scenes, Tensor]


def truth(size: int = 32, shapes: int = EASY) -> World:
    asked = questions(PER_TAG, PER_TAG, shapes=shapes)
    lines = [line for pairs in asked.values() for line, samples in pairs for _ in range(samples)]
    scenes = fill(parse(lines), keyed_generator("truth", index=0), canvas_of(size))
    return lines, scenes, render(scenes, size)


@pytest.fixture(scope="module")
def easy() -> World:
    return truth()


def score(lines: list[Metadata], images: Tensor, shapes: int = EASY) -> dict[str, float]:
    """Share of images that are right by GenEval's own rules, by tag."""
    verdicts = defaultdict(list)
    for line, reading in zip(lines, ShapeDetector(shapes).read(images), strict=True):
        asked = parse_metadata(json.dumps(line), "here", VOCABULARY)
        verdicts[asked.tag].append(judge(asked, reading.detections).correct)
    return {tag: float(np.mean(correct)) for tag, correct in verdicts.items()}


# the detector


def test_truth_is_read_without_error(easy: World) -> None:
    lines, _, images = easy
    by_tag = score(lines, images)
    assert set(by_tag) == set(TAGS) and min(by_tag.values()) >= 0.99


@pytest.mark.parametrize("size", [32, 64])
def test_hard_truth_is_read_without_error(size: int) -> None:
    lines, _, images = truth(size, HARD)
    assert min(score(lines, images, HARD).values()) >= 0.99


def test_a_blur_of_one_pixel_is_borne(easy: World) -> None:
    lines, _, images = easy
    by_tag = score(lines, gaussian_blur(images, 9, 1.0))
    assert sum(by_tag.values()) / 6 >= 0.9


def test_noise_is_borne(easy: World) -> None:
    lines, _, images = easy
    noise = torch.randn(images.shape, generator=keyed_generator("noise", index=0)) * 8 / 127.5
    assert sum(score(lines, images + noise).values()) / 6 >= 0.95


def test_shuffled_captions_score_near_nothing(easy: World) -> None:
    lines, _, images = easy
    order = torch.randperm(len(lines), generator=keyed_generator("shuffle", index=0)).tolist()
    by_tag = score([lines[i] for i in order], images)
    assert sum(by_tag.values()) / 6 < 0.12 and by_tag["color_attr"] < 0.05


def test_objects_are_found_where_they_are(easy: World) -> None:
    _, scenes, images = easy
    for i, reading in enumerate(ShapeDetector().read(images)):
        places = torch.nonzero(scenes.shape[i] >= 0)[:, 0]
        centres = torch.tensor([[d.box[0] + d.box[2], d.box[1] + d.box[3]] for d in reading.detections]) / 2
        nearest = torch.cdist(scenes.centre[i, places], centres).argmin(1).tolist()
        assert sorted(nearest) == list(range(len(places)))
        for place, detection in zip(places.tolist(), (reading.detections[k] for k in nearest), strict=True):
            centre, radius = scenes.centre[i, place], scenes.radius[i, place]
            assert torch.tensor(detection.box).sub(torch.cat([centre - radius, centre + radius])).abs().amax() < 0.35
            assert detection.cls == SHAPE_NAMES[scenes.shape[i, place]]
            assert detection.colour == COLOUR_NAMES[scenes.colour[i, place]]
            assert detection.mask is not None and detection.mask[tuple(centre.long().flip(0).tolist())]


def test_one_image_is_read_as_one_of_many(easy: World) -> None:
    images, detector = easy[2][:20], ShapeDetector()
    pixels = quantise(images).permute(0, 2, 3, 1).numpy()
    for image, reading in zip(pixels, detector.read(images), strict=True):
        alone = detector.detect(image)
        assert [(d.cls, d.colour) for d in alone] == [(d.cls, d.colour) for d in reading.detections]
        assert np.allclose([d.box for d in alone], [d.box for d in reading.detections], atol=1e-4)


# legibility


def values(images: Tensor) -> dict[str, float]:
    detector = ShapeDetector()
    return {m.metric: m.value for m in legibility(legible(detector.read(images)), detector.protocol)}


def test_truth_is_legible_and_blur_costs_crispness(easy: World) -> None:
    images = easy[2]
    clean, soft, softer = (values(x) for x in (images, gaussian_blur(images, 9, 0.5), gaussian_blur(images, 9, 1.0)))
    assert clean["parse_rate"] == 1 and clean["stray"] == 0
    assert clean["crispness"] > 0.98 > soft["crispness"] > softer["crispness"]


def test_an_empty_image_has_no_objects_and_no_crispness() -> None:
    assert values(torch.zeros(2, 3, 32, 32)) == {"parse_rate": 0.0, "stray": 0.0}


def test_stray_pixels_are_counted(easy: World) -> None:
    image = easy[2][:1].clone()
    (before,) = ShapeDetector().read(image)
    clear = (image[0] - image[0, :, :1, :1]).abs().amax(0) < 1e-3
    row, column = torch.nonzero(torch.nn.functional.avg_pool2d(clear[None].float(), 13, 1)[0] == 1)[0].tolist()
    image[:, :, row + 6 : row + 8, column + 6 : column + 8] = 1
    (after,) = ShapeDetector().read(image)
    assert (before.stray, after.stray, after.visible) == (0, 4, before.visible + 4)
    assert len(after.detections) == len(before.detections)


def test_a_blob_of_no_shape_is_left_unexplained() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 6:26, 6:8] = image[:, :, 24:26, 6:26] = 1
    (reading,) = ShapeDetector().read(image)
    assert (reading.blobs, reading.detections) == (1, []) and reading.stray == reading.visible > 0


# the questions


def test_every_tag_gets_its_images_evenly() -> None:
    for images in (100, 400):
        asked = questions(50, images)
        assert tuple(asked) == TAGS
        for tag, pairs in asked.items():
            samples = [n for line, n in pairs if line["tag"] == tag]
            assert sum(samples) == images and max(samples) - min(samples) <= 1 and len(samples) <= 50
    prompts = [line["prompt"] for pairs in questions().values() for line, _ in pairs]
    assert len(prompts) == len(set(prompts)) == 4 + 12 + 12 + 40 + 48 + 100


def test_questions_are_a_function_of_the_seed_and_ask_for_unseen_bindings() -> None:
    assert questions(seed=1) == questions(seed=1) != questions(seed=2)
    unseen = [tag for tag, pairs in questions().items() for line, _ in pairs if binds_unseen(line)]
    assert unseen.count("colors") == 8 and unseen.count("color_attr") > 20
    assert set(unseen) == {"colors", "color_attr"}


def test_fewer_images_than_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="10 images cannot be shared among 20 prompts"):
        questions(20, 10)
