"""Mask2Former's post-processing on hand-made logits, CLIP's crops, and both on tiny random networks."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_detectors import save_clip, save_mask2former
from torch import Tensor
from torch.nn.functional import normalize

from fgm.data.geneval import COLORS, OBJECTS
from fgm.evaluation.geneval.detectors import (
    TEMPLATES,
    CLIPColors,
    Geometry,
    Mask2FormerDetector,
    cut_out,
    postprocess,
    preprocess,
)
from fgm.evaluation.geneval.rules import Detection, Pixels
from fgm.evaluation.pretrained_features import OPENAI
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
SAME = Geometry((24, 32), (24, 32), (24, 32))
SURE = 50.0
GRAY = (0x99, 0x99, 0x99)


def noise(seed: int, h: int = 40, w: int = 40) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


# Mask2Former's post-processing


def class_logits(*rows: dict[str, float]) -> Tensor:
    """One row of probabilities for each query; the rest is "no object"."""
    p = torch.full((len(rows), 81), 1e-9, dtype=torch.float64)
    for i, row in enumerate(rows):
        for name, value in row.items():
            p[i, OBJECTS.index(name)] = value
        p[i, 80] = max(1 - sum(row.values()), 1e-9)
    return p.log()


def mask_logits(*areas: tuple[int, int, int, int], inside: float = SURE) -> Tensor:
    """One mask for each area (x_0, y_0, x_1, y_1)."""
    logits = torch.full((len(areas), 24, 32), -SURE)
    for mask, (x_0, y_0, x_1, y_1) in zip(logits, areas, strict=True):
        mask[y_0:y_1, x_0:x_1] = inside
    return logits


def test_box_is_tight_around_the_mask() -> None:
    areas = [(3, 5, 9, 20), (0, 0, 32, 24), (31, 23, 32, 24), (7, 7, 8, 8)]
    found = postprocess(class_logits(*[{"dog": 0.5 + i / 10} for i in range(4)]), mask_logits(*areas), SAME, floor=0.1)
    assert [one.box for one in found] == list(reversed(areas))
    for one, (x_0, y_0, x_1, y_1) in zip(found, reversed(areas), strict=True):
        expected = np.zeros((24, 32), bool)
        expected[y_0:y_1, x_0:x_1] = True
        assert np.array_equal(one.mask, expected) and one.cls == "dog"


def test_score_is_class_probability_times_mean_mask_probability() -> None:
    logits = mask_logits((2, 2, 4, 4))
    logits[0, 2:4, 2:4] = torch.tensor([[0.1, 1.0], [2.0, 5.0]])
    (found,) = postprocess(class_logits({"cat": 0.7}), logits, SAME, floor=0.1)
    assert found.score == pytest.approx(0.7 * np.mean([1 / (1 + np.exp(-x)) for x in (0.1, 1.0, 2.0, 5.0)]), rel=1e-5)


def test_pixels_of_logit_zero_are_outside_and_empty_masks_are_no_objects() -> None:
    logits = mask_logits((2, 2, 8, 8), inside=0.0)
    logits[0, 4, 5] = 1e-3
    (found,) = postprocess(class_logits({"cat": 0.7}), logits, SAME, floor=0.1)
    assert found.box == (5, 4, 6, 5) and found.score == pytest.approx(0.35, rel=1e-3)
    assert postprocess(class_logits({"cat": 0.9}), mask_logits((0, 0, 5, 5), inside=0.0), SAME) == []
    assert postprocess(class_logits({}), mask_logits((0, 0, 5, 5)), SAME, floor=0.01) == []


def test_query_may_have_two_classes_and_class_two_queries() -> None:
    classes = class_logits({"cat": 0.6, "dog": 0.3}, {"cat": 0.5})
    found = postprocess(classes, mask_logits((0, 0, 5, 5), (9, 9, 12, 12)), SAME, floor=0.1)
    assert [(one.cls, round(one.score, 6), one.box) for one in found] == [
        ("cat", 0.6, (0, 0, 5, 5)), ("cat", 0.5, (9, 9, 12, 12)), ("dog", 0.3, (0, 0, 5, 5))
    ]  # fmt: skip


def test_hundred_pairs_are_chosen_by_class_probability_before_masks_count() -> None:
    """80 classes x 3 queries, and the masks of the first query are less certain."""
    classes = torch.randn(3, 81, generator=torch.Generator().manual_seed(0))
    masks = mask_logits((0, 0, 5, 5), (4, 4, 9, 9), (2, 8, 30, 20))
    masks[0, :5, :5] = 0.1
    found = postprocess(classes, masks, SAME)
    best = classes.softmax(-1)[:, :-1].flatten().topk(100)
    share = torch.tensor([torch.tensor(0.1).sigmoid(), 1.0, 1.0])
    expected = sorted((best.values * share[best.indices // 80]).tolist())
    assert sorted(one.score for one in found) == pytest.approx(expected, rel=1e-5) and len(found) == 100
    assert len(postprocess(classes, masks, SAME, top=7)) == 7


def test_floor_changes_nothing_above_it() -> None:
    generator = torch.Generator().manual_seed(1)
    classes, masks = 3 * torch.randn(5, 81, generator=generator), torch.randn(5, 24, 32, generator=generator)
    every, floored = (
        {(one.cls, one.box, one.score) for one in postprocess(classes, masks, SAME, floor=floor) if one.score > 0.05}
        for floor in (0.0, 0.05)
    )
    assert every == floored and every


def test_labels_are_read_by_index() -> None:
    logits = torch.full((80, 81), -SURE)
    logits[torch.arange(80), torch.arange(80)] = SURE
    found = postprocess(logits, torch.full((80, 4, 4), SURE), Geometry((4, 4), (4, 4), (4, 4)), top=80, floor=0.5)
    assert {one.cls for one in found} == set(OBJECTS) and len(found) == 80


@pytest.mark.parametrize(
    ("image", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((512, 768), (800, 1200), (800, 1216)),
        ((768, 512), (1200, 800), (1216, 800)),
        ((512, 1024), (667, 1333), (672, 1344)),  # the longer side limits
        ((480, 640), (800, 1067), (800, 1088)),
    ],
)
def test_geometry_is_the_official_test_scale(
    image: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    assert Geometry.of(image, 800, 1333) == Geometry(image, resized, padded)


def test_input_is_normalized_and_padded_with_zeros() -> None:
    geometry = Geometry.of((20, 30), short_side=40, long_side=100)
    assert geometry == Geometry((20, 30), (40, 60), (64, 64))
    x = geometry.prepare(torch.full((20, 30, 3), 255, dtype=torch.uint8))
    assert x.shape == (1, 3, 64, 64) and not x[..., 40:, :].any() and not x[..., 60:].any()
    white = torch.tensor([(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375])
    assert torch.allclose(x[0, :, :40, :60], white[:, None, None].expand(3, 40, 60))


def test_masks_are_restored_to_the_image() -> None:
    """A mask at a quarter of the padded input: rows 0 to 20 of 64, which are rows 0 to 10 of the image's 20."""
    quarter = torch.full((1, 16, 16), -SURE)
    quarter[0, :5] = SURE
    restored = Geometry((20, 30), (40, 60), (64, 64)).restore(quarter)
    assert restored.shape == (1, 20, 30)
    assert (restored[0, :10] > 0).all() and (restored[0, 10:] < 0).all()


# CLIP's crops


def test_crop_is_gray_outside_of_the_mask_and_ends_at_the_box() -> None:
    image = noise(0, 20, 30)
    mask = np.zeros((20, 30), bool)
    mask[5:9, 3:10] = True
    mask[5, 3] = False
    crop = cut_out(image, Detection("car", (3, 5, 10, 9), 0.9, mask))
    assert tuple(crop[0, 0]) == GRAY and np.array_equal(crop.reshape(-1, 3)[1:], image[5:9, 3:10].reshape(-1, 3)[1:])
    assert np.array_equal(cut_out(image, Detection("car", (2.6, 5.4, 10.4, 8.6), 0.9)), image[5:9, 3:10])


@pytest.mark.parametrize("box", [(-5, -5, 40, 40), (29.9, 19.9, 30, 20), (40, 40, 50, 50), (7, 7, 7, 7)])
def test_crop_is_never_empty(box: tuple[float, float, float, float]) -> None:
    assert preprocess(cut_out(noise(0, 20, 30), Detection("car", box, 0.9)), 16).shape == (1, 3, 16, 16)


def test_elongated_object_is_judged_by_its_middle() -> None:
    image = np.zeros((10, 50, 3), np.uint8)
    image[:, 20:30] = (255, 0, 0)
    expected = (torch.tensor([1.0, 0, 0]) - torch.tensor(OPENAI[0])) / torch.tensor(OPENAI[1])
    assert torch.allclose(preprocess(image, 10)[0], expected[:, None, None].expand(3, 10, 10), atol=1e-6)


# tiny random networks


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_mask2former(folder / "mask2former")
    save_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def colors(weights: Path) -> CLIPColors:
    return CLIPColors(weights / "clip")


def test_detections_are_the_postprocessed_logits_of_the_network(weights: Path) -> None:
    detector = Mask2FormerDetector(weights / "mask2former", short_side=64, long_side=128, top=20, floor=0.0)
    image = noise(1, 48, 70)
    geometry = Geometry.of((48, 70), 64, 128)
    with torch.inference_mode():
        output = detector.net(pixel_values=geometry.prepare(torch.tensor(image)))
    expected = postprocess(output.class_queries_logits[0], output.masks_queries_logits[0], geometry, top=20)
    found = detector.detect(image)
    assert [(a.cls, a.box, a.score) for a in found] == [(b.cls, b.box, b.score) for b in expected] and found
    assert all(one.mask.shape == (48, 70) for one in found)
    name, digest, rest = detector.protocol.split(maxsplit=2)
    assert (name, len(digest), rest) == ("Mask2Former", 9, "sides 64 to 128, top 20")


def test_text_is_the_normalized_mean_of_three_templates(colors: CLIPColors) -> None:
    rows = []
    for color in COLORS:
        tokens = [colors.tokenizer([t.format(color=color, name="hot dog")], return_tensors="pt") for t in TEMPLATES]
        texts = [colors.net.text_projection(colors.net.text_model(**each).pooler_output) for each in tokens]
        rows.append(normalize(normalize(torch.cat(texts), dim=-1).mean(0), dim=0))
    assert torch.allclose(colors.texts("hot dog"), torch.stack(rows), atol=1e-5)
    assert TEMPLATES[1].format(color="red", name="hot dog") == "a photo of a red-colored hot dog"


def test_color_has_the_largest_cosine_with_the_image(colors: CLIPColors, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embeddings of ten images as texts, every image gets its own color."""
    shades = [np.full((20, 20, 3), 25 * i, np.uint8) for i in range(10)]
    x = torch.cat([preprocess(shade, 16) for shade in shades])
    embeddings = colors.net.visual_projection(colors.net.vision_model(pixel_values=x).pooler_output)
    monkeypatch.setattr(colors, "texts", lambda name: normalize(embeddings, dim=-1))
    dog = Detection("dog", (0, 0, 20, 20), 0.9)
    assert [colors.classify(shade, [dog])[0] for shade in shades] == list(COLORS)


def test_only_masked_pixels_matter(colors: CLIPColors) -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:15, 4:15] = True
    one, other = noise(0, 20, 20), noise(1, 20, 20)
    other[mask] = one[mask]
    bus = Detection("bus", (2, 2, 18, 18), 0.9, mask)
    assert torch.equal(colors.cosines(one, bus), colors.cosines(other, bus))
    assert not torch.equal(colors.cosines(one, Detection("bus", bus.box, 0.9)), colors.cosines(one, bus))


def test_both_forms_of_the_tokenizer_are_equivalent(tmp_path: Path, weights: Path, colors: CLIPColors) -> None:
    folder = shutil.copytree(weights / "clip", tmp_path / "clip")
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert torch.equal(CLIPColors(folder).texts("hot dog"), colors.texts("hot dog"))


@pytest.mark.parametrize(
    ("network", "file", "content", "message"),
    [
        ("clip", "config.json", None, r"has no config\.json: put the files of openai/clip-vit-large-patch14"),
        ("clip", "model.safetensors", None, r"has no \*\.safetensors: .* nothing is downloaded"),
        ("clip", "tokenizer.json", None, r"has no vocab\.json: put the files of openai/clip-vit-large-patch14"),
        ("mask2former", "model.safetensors", b"", r"model\.safetensors is empty"),
        ("mask2former", "model.safetensors", b"\0" * 40, r"model\.safetensors holds only zeros"),
        ("mask2former", "config.json", b"{", r"does not load \(.*\); put the files of facebook"),
        ("mask2former", "config.json", {"num_queries": 7}, r"does not load \(.*\); put the files of facebook"),
        ("mask2former", "config.json", {"encoder_layers": 2}, r"lacks \d+ weights, model\..* first; put the files"),
    ],
)
def test_missing_or_damaged_file_is_one_line(
    tmp_path: Path, weights: Path, network: str, file: str, content: bytes | dict[str, int] | None, message: str
) -> None:
    folder = shutil.copytree(weights / network, tmp_path / network)
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / file).read_text()) | content).encode()
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        {"clip": CLIPColors, "mask2former": Mask2FormerDetector}[network](folder)
    assert "\n" not in str(error.value)


def test_network_with_other_classes_is_an_error(tmp_path: Path) -> None:
    save_mask2former(tmp_path, num_labels=133)
    with pytest.raises(UserError, match="has 133 classes, not COCO's 80"):
        Mask2FormerDetector(tmp_path)
