"""The detector reads true renders without error, tolerates blur and noise, and rejects shuffled captions."""

from collections import defaultdict
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from fgm.data.geneval import COLORS, TAGS, Metadata
from fgm.data.pixels import quantise
from fgm.data.shapes.captions import EASY, HARD, SHAPES
from fgm.data.shapes.scenes import Scenes, canvas_of, draw_scenes_of, render
from fgm.evaluation.geneval.rules import grade
from fgm.evaluation.shapes.detector import ShapeDetector, legibility, legibility_features
from fgm.evaluation.shapes.metric import ShapeEvalSuite
from fgm.utils.random import keyed_generator

PER_TAG = 60
World = tuple[list[Metadata], Scenes, Tensor]


def true_world(size: Literal[32, 64] = 32, shapes: int = EASY) -> World:
    suite = ShapeEvalSuite(size, shapes, PER_TAG, PER_TAG)
    scenes = draw_scenes_of(suite.captions, keyed_generator("truth", index=0), canvas_of(size))
    return suite.sequence, scenes, render(scenes, size)


@pytest.fixture(scope="module")
def easy() -> World:
    return true_world()


def score(prompts: list[Metadata], images: Tensor, shapes: int = EASY) -> dict[str, float]:
    """Share of images that are correct by GenEval's own rules, by tag."""
    grades = defaultdict(list)
    for metadata, reading in zip(prompts, ShapeDetector(shapes).read(images), strict=True):
        grades[metadata.tag].append(grade(metadata, reading.detections).correct)
    return {tag: float(np.mean(correct)) for tag, correct in grades.items()}


def test_true_renders_are_graded_correct(easy: World) -> None:
    prompts, _, images = easy
    by_tag = score(prompts, images)
    assert set(by_tag) == set(TAGS) and min(by_tag.values()) >= 0.99


@pytest.mark.parametrize("size", [32, 64])
def test_true_renders_of_six_shapes_are_graded_correct(size: Literal[32, 64]) -> None:
    prompts, _, images = true_world(size, HARD)
    assert min(score(prompts, images, HARD).values()) >= 0.99


def test_blur_of_one_pixel_costs_a_tenth_at_most(easy: World) -> None:
    prompts, _, images = easy
    by_tag = score(prompts, gaussian_blur(images, 9, 1.0))
    assert sum(by_tag.values()) / 6 >= 0.9


def test_noise_of_eight_levels_costs_a_twentieth_at_most(easy: World) -> None:
    prompts, _, images = easy
    noise = torch.randn(images.shape, generator=keyed_generator("noise", index=0)) * 8 / 127.5
    assert sum(score(prompts, images + noise).values()) / 6 >= 0.95


def test_shuffled_captions_score_close_to_zero(easy: World) -> None:
    prompts, _, images = easy
    order = torch.randperm(len(prompts), generator=keyed_generator("shuffle", index=0)).tolist()
    by_tag = score([prompts[i] for i in order], images)
    assert sum(by_tag.values()) / 6 < 0.12 and by_tag["color_attr"] < 0.05


def test_boxes_classes_colors_and_masks_are_those_of_the_scene(easy: World) -> None:
    _, scenes, images = easy
    for i, reading in enumerate(ShapeDetector().read(images)):
        places = torch.nonzero(scenes.shape[i] >= 0)[:, 0]
        centers = torch.tensor([[d.box[0] + d.box[2], d.box[1] + d.box[3]] for d in reading.detections]) / 2
        nearest = torch.cdist(scenes.center[i, places], centers).argmin(1).tolist()
        assert sorted(nearest) == list(range(len(places)))
        for place, detection in zip(places.tolist(), (reading.detections[k] for k in nearest), strict=True):
            center, radius = scenes.center[i, place], scenes.radius[i, place]
            assert torch.tensor(detection.box).sub(torch.cat([center - radius, center + radius])).abs().amax() < 0.35
            assert detection.cls == SHAPES[scenes.shape[i, place]]
            assert detection.color == COLORS[scenes.color[i, place]]
            assert detection.mask is not None and detection.mask[tuple(center.long().flip(0).tolist())]


def test_reading_does_not_depend_on_the_batch(easy: World) -> None:
    images, detector = easy[2][:20], ShapeDetector()
    pixels = quantise(images).permute(0, 2, 3, 1).numpy()
    for image, reading in zip(pixels, detector.read(images), strict=True):
        alone = detector.detect(image)
        assert [(d.cls, d.color) for d in alone] == [(d.cls, d.color) for d in reading.detections]
        assert np.allclose([d.box for d in alone], [d.box for d in reading.detections], atol=1e-4)


# legibility


def values(images: Tensor) -> dict[str, float]:
    detector = ShapeDetector()
    return {m.metric: m.value for m in legibility(legibility_features(detector.read(images)), detector.protocol)}


def test_true_renders_are_legible_and_blur_lowers_crispness(easy: World) -> None:
    images = easy[2]
    clean, soft, softer = (values(x) for x in (images, gaussian_blur(images, 9, 0.5), gaussian_blur(images, 9, 1.0)))
    assert clean["parse_rate"] == 1 and clean["stray"] == 0
    assert clean["crispness"] > 0.98 > soft["crispness"] > softer["crispness"]


def test_empty_images_have_no_crispness() -> None:
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


def test_blob_of_another_shape_is_unexplained() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 6:26, 6:8] = image[:, :, 24:26, 6:26] = 1
    (reading,) = ShapeDetector().read(image)
    assert (reading.blobs, reading.detections) == (1, []) and reading.stray == reading.visible > 0
