"""The detector's post-processing on hand-made logits, and the whole of it on a tiny random network."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fgm.data.text.geneval.vocabulary import OBJECTS
from fgm.evaluation.geneval.mask2former import Geometry, Mask2FormerDetector, detection, postprocess
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
SAME = Geometry((24, 32), (24, 32), (24, 32))
SURE = 50.0


def class_logits(*rows: dict[str, float]) -> Tensor:
    """One row of probabilities per query; what is left over goes to "no object"."""
    p = torch.full((len(rows), 81), 1e-9, dtype=torch.float64)
    for i, row in enumerate(rows):
        for name, value in row.items():
            p[i, OBJECTS.index(name)] = value
        p[i, 80] = max(1 - sum(row.values()), 1e-9)
    return p.log()


def mask_logits(*areas: tuple[int, int, int, int], inside: float = SURE) -> Tensor:
    """One mask per area (x_0, y_0, x_1, y_1)."""
    logits = torch.full((len(areas), 24, 32), -SURE)
    for mask, (x_0, y_0, x_1, y_1) in zip(logits, areas, strict=True):
        mask[y_0:y_1, x_0:x_1] = inside
    return logits


def test_the_box_is_the_masks_tight_one() -> None:
    areas = [(3, 5, 9, 20), (0, 0, 32, 24), (31, 23, 32, 24), (7, 7, 8, 8)]
    found = postprocess(class_logits(*[{"dog": 0.5 + i / 10} for i in range(4)]), mask_logits(*areas), SAME, floor=0.1)
    assert [one.box for one in found] == list(reversed(areas))
    for one, (x_0, y_0, x_1, y_1) in zip(found, reversed(areas), strict=True):
        expected = np.zeros((24, 32), bool)
        expected[y_0:y_1, x_0:x_1] = True
        assert np.array_equal(one.mask, expected) and one.cls == "dog"


def test_the_score_is_class_probability_times_mean_mask_probability() -> None:
    logits = mask_logits((2, 2, 4, 4))
    logits[0, 2:4, 2:4] = torch.tensor([[0.1, 1.0], [2.0, 5.0]])
    (found,) = postprocess(class_logits({"cat": 0.7}), logits, SAME, floor=0.1)
    inside = np.mean([1 / (1 + np.exp(-x)) for x in (0.1, 1.0, 2.0, 5.0)])
    assert found.score == pytest.approx(0.7 * inside, rel=1e-5)


def test_pixels_of_logit_zero_are_outside() -> None:
    logits = mask_logits((2, 2, 8, 8), inside=0.0)
    logits[0, 4, 5] = 1e-3
    (found,) = postprocess(class_logits({"cat": 0.7}), logits, SAME, floor=0.1)
    assert found.box == (5, 4, 6, 5) and found.score == pytest.approx(0.35, rel=1e-3)


def test_an_empty_mask_is_no_object() -> None:
    assert postprocess(class_logits({"cat": 0.9}), torch.full((1, 24, 32), -1.0), SAME) == []
    assert detection("cat", 0.9, torch.zeros(4, 4)) is None


def test_no_object_is_left_out_of_the_classes() -> None:
    assert postprocess(class_logits({}), mask_logits((0, 0, 5, 5)), SAME, floor=0.01) == []


def test_a_query_may_name_two_classes_and_a_class_two_queries() -> None:
    found = postprocess(
        class_logits({"cat": 0.6, "dog": 0.3}, {"cat": 0.5}), mask_logits((0, 0, 5, 5), (9, 9, 12, 12)), SAME, floor=0.1
    )
    told = [(one.cls, round(one.score, 6), one.box) for one in found]
    assert told == [("cat", 0.6, (0, 0, 5, 5)), ("cat", 0.5, (9, 9, 12, 12)), ("dog", 0.3, (0, 0, 5, 5))]


def test_the_hundred_most_probable_pairs_are_kept_before_masks_are_looked_at() -> None:
    """80 classes x 3 queries: the hundred are chosen by class alone, though their masks are the less sure ones."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(3, 81, generator=generator)
    masks = mask_logits((0, 0, 5, 5), (4, 4, 9, 9), (2, 8, 30, 20))
    masks[0, :5, :5] = 0.1
    found = postprocess(classes, masks, SAME)
    p = classes.softmax(-1)[:, :-1].flatten()
    best = p.topk(100).values.sum()
    assert len(found) == 100
    share = {0: torch.tensor(0.1).sigmoid(), 1: torch.tensor(1.0), 2: torch.tensor(1.0)}
    top = p.topk(100).indices
    expected = sorted((float(p[i] * share[int(i) // 80]) for i in top), reverse=True)
    assert sorted((one.score for one in found), reverse=True) == pytest.approx(expected, rel=1e-5)
    assert sum(expected) < best
    assert len(postprocess(classes, masks, SAME, top=7)) == 7


def test_the_floor_hides_nothing_above_it() -> None:
    generator = torch.Generator().manual_seed(1)
    classes, masks = 3 * torch.randn(5, 81, generator=generator), torch.randn(5, 24, 32, generator=generator)
    every = {(one.cls, one.box, one.score) for one in postprocess(classes, masks, SAME) if one.score > 0.05}
    floored = {
        (one.cls, one.box, one.score) for one in postprocess(classes, masks, SAME, floor=0.05) if one.score > 0.05
    }
    assert every == floored and every


def test_labels_are_read_by_index() -> None:
    logits = torch.full((80, 81), -SURE)
    logits[torch.arange(80), torch.arange(80)] = SURE
    masks = torch.full((80, 4, 4), SURE)
    found = postprocess(logits, masks, Geometry((4, 4), (4, 4), (4, 4)), top=80, floor=0.5)
    assert {one.cls for one in found} == set(OBJECTS) and len(found) == 80


@pytest.mark.parametrize(
    ("image", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((512, 768), (800, 1200), (800, 1216)),
        ((768, 512), (1200, 800), (1216, 800)),
        ((512, 1024), (667, 1333), (672, 1344)),  # the longer side binds
        ((480, 640), (800, 1067), (800, 1088)),
    ],
)
def test_the_test_scale_is_the_official_one(
    image: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    assert Geometry.of(image, 800, 1333) == Geometry(image, resized, padded)


def test_the_input_is_normalised_and_padded_with_zeros() -> None:
    geometry = Geometry.of((20, 30), short_side=40, long_side=100)
    assert geometry == Geometry((20, 30), (40, 60), (64, 64))
    x = geometry.prepare(torch.full((20, 30, 3), 255, dtype=torch.uint8))
    assert x.shape == (1, 3, 64, 64) and not x[..., 40:, :].any() and not x[..., 60:].any()
    white = torch.tensor([(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375])
    assert torch.allclose(x[0, :, :40, :60], white[:, None, None].expand(3, 40, 60))


def test_masks_find_back_to_the_image() -> None:
    """A mask at a quarter of the padded input, over the upper left of the resized image's half, lands there."""
    geometry = Geometry((20, 30), (40, 60), (64, 64))
    quarter = torch.full((1, 16, 16), -SURE)
    quarter[0, :5] = SURE  # rows 0 to 20 of 64, which are 0 to 10 of the image's 20
    restored = geometry.restore(quarter)
    assert restored.shape == (1, 20, 30)
    assert (restored[0, :10] > 0).all() and (restored[0, 10:] < 0).all()
    assert torch.equal(SAME.restore(mask_logits((1, 2, 3, 4))), mask_logits((1, 2, 3, 4)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mask2former")
    save_tiny(directory, num_labels=80)
    return directory


def save_tiny(directory: Path, num_labels: int) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64, **stages
    )  # fmt: skip
    labels: dict[str, Any] = {"num_labels": num_labels}
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12, **labels,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(directory)


@pytest.fixture(scope="module")
def detector(weights: Path) -> Mask2FormerDetector:
    return Mask2FormerDetector(weights, short_side=64, long_side=128, top=20, floor=0.0)


def test_the_network_runs_on_any_shape_and_repeats_itself(detector: Mask2FormerDetector) -> None:
    assert sum(p.numel() for p in detector.net.parameters()) < 1_000_000
    image = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)
    first, second = detector.detect(image), detector.detect(image)
    assert 0 < len(first) <= 20
    assert [(a.cls, a.box, a.score) for a in first] == [(b.cls, b.box, b.score) for b in second]
    for one in first:
        rows, columns = np.nonzero(one.mask)
        assert one.mask.shape == (48, 70) and one.cls in OBJECTS
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_its_detections_are_its_logits_post_processed(detector: Mask2FormerDetector) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    geometry = Geometry.of((64, 64), 64, 128)
    with torch.inference_mode():
        output = detector.net(pixel_values=geometry.prepare(torch.tensor(image)))
    expected = postprocess(output.class_queries_logits[0], output.masks_queries_logits[0], geometry, top=20)
    assert [(a.cls, a.box, a.score) for a in detector.detect(image)] == [(b.cls, b.box, b.score) for b in expected]


def test_the_protocol_names_the_weights(detector: Mask2FormerDetector) -> None:
    words = detector.protocol.split()
    assert words[0] == "Mask2Former" and len(words[1].rstrip(",")) == 8 and "sides 64 to 128" in detector.protocol


def test_missing_weights_are_refused_before_transformers_is_needed(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no config\.json: put the files of facebook/mask2former-swin-small-coco-inst"
    ):
        Mask2FormerDetector(tmp_path / "nowhere")
    shutil.copy(weights / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"holds no \*\.safetensors: .* nothing is downloaded"):
        Mask2FormerDetector(tmp_path)


def test_another_set_of_classes_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, num_labels=133)
    with pytest.raises(UserError, match="a network of 133 classes, not COCO's 80"):
        Mask2FormerDetector(tmp_path)


def test_spoilt_files_are_refused_in_one_line(tmp_path: Path, weights: Path) -> None:
    whole = (weights / "model.safetensors").read_bytes()
    config = json.loads((weights / "config.json").read_text())
    spoilt = {
        "model.safetensors": (whole[: len(whole) // 2], whole[:4], b""),
        "config.json": (b"{", json.dumps(config | {"num_queries": 7}).encode()),
    }
    for i, (name, content) in enumerate((name, content) for name, several in spoilt.items() for content in several):
        directory = shutil.copytree(weights, tmp_path / str(i))
        (directory / name).write_bytes(content)
        with pytest.raises(UserError, match=r"does not load \(.*\); put the files of facebook") as refusal:
            Mask2FormerDetector(directory)
        assert "\n" not in str(refusal.value)


def test_weights_of_another_network_are_refused(tmp_path: Path, weights: Path) -> None:
    """transformers would fill the rest at random and only warn."""
    shutil.copytree(weights, tmp_path / "deeper")
    config = json.loads((weights / "config.json").read_text())
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config | {"encoder_layers": 2}))
    with pytest.raises(UserError, match=r"lacks \d+ weights, model\..* first; put the files of facebook"):
        Mask2FormerDetector(tmp_path / "deeper")
