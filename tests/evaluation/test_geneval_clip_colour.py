"""CLIP as colour classifier: what it is shown, what it is asked, and the whole of it on a tiny random network."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fgm.data.text.geneval.vocabulary import COLOURS
from fgm.evaluation.geneval.clip_colour import MEAN, STD, TEMPLATES, ClipColours, cut_out, preprocess
from fgm.evaluation.geneval.detections import Detection, Pixels
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
RED, GREY = (255, 0, 0), (0x99, 0x99, 0x99)


def red(h: int = 20, w: int = 30) -> Pixels:
    return np.full((h, w, 3), RED, np.uint8)


def test_outside_of_the_mask_is_grey_and_outside_of_the_box_nothing() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:9, 3:10] = True
    mask[5, 3] = False
    shown = cut_out(red(), Detection("car", (3, 5, 10, 9), 0.9, mask))
    assert shown.shape == (4, 7, 3) and shown.dtype == np.uint8
    assert tuple(shown[0, 0]) == GREY and (shown.reshape(-1, 3)[1:] == RED).all()


def test_without_a_mask_the_box_is_shown_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(cut_out(image, Detection("car", (3, 5, 10, 9), 0.9)), image[5:9, 3:10])
    assert np.array_equal(cut_out(image, Detection("car", (2.6, 5.4, 10.4, 8.6), 0.9)), image[5:9, 3:10])


@pytest.mark.parametrize(
    "box", [(-5, -5, 40, 40), (29.9, 19.9, 30, 20), (40, 40, 50, 50), (7, 7, 7, 7), (-9, -9, -3, -3)]
)
def test_a_cut_out_is_never_empty(box: tuple[float, float, float, float]) -> None:
    shown = cut_out(red(), Detection("car", box, 0.9))
    assert shown.size and preprocess(shown, 16).shape == (1, 3, 16, 16)


def test_an_elongated_object_is_judged_by_its_middle() -> None:
    image = np.zeros((10, 50, 3), np.uint8)
    image[:, 20:30] = RED
    expected = (torch.tensor([1.0, 0, 0]) - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(preprocess(image, 10)[0], expected[:, None, None].expand(3, 10, 10), atol=1e-6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    directory = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["-"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    CLIPTokenizer({word: i for i, word in enumerate(words)}, []).save_pretrained(directory)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    config = CLIPConfig(
        text_config=layers | text, vision_config=layers | {"image_size": 16, "patch_size": 8}, projection_dim=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(directory)
    return directory


@pytest.fixture
def colours(weights: Path) -> ClipColours:
    return ClipColours(weights)


def test_the_text_is_the_mean_of_three_templates(colours: ClipColours) -> None:
    rows = []
    for colour in COLOURS:
        single = []
        for template in TEMPLATES:
            tokens = colours.tokenizer([template.format(colour=colour, name="hot dog")], return_tensors="pt")
            single.append(
                normalize(colours.net.text_projection(colours.net.text_model(**tokens).pooler_output), dim=-1)
            )
        rows.append(normalize(torch.cat(single).mean(0), dim=0))
    assert torch.allclose(colours.texts("hot dog"), torch.stack(rows), atol=1e-5)
    assert TEMPLATES[1].format(colour="red", name="hot dog") == "a photo of a red-colored hot dog"


def test_texts_are_unit_and_depend_on_colour_and_class(colours: ClipColours) -> None:
    dog, cat = colours.texts("dog"), colours.texts("cat")
    assert torch.allclose(dog.norm(dim=-1), torch.ones(10)) and dog.shape == cat.shape
    assert torch.cdist(dog, dog)[~torch.eye(10, dtype=torch.bool)].min() > 0 and not torch.allclose(dog, cat)
    assert colours.texts("dog") is dog


def test_the_colour_is_the_one_of_the_largest_cosine(colours: ClipColours) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    found = [Detection(name, (x, 0, x + 9, 30), 0.9) for x, name in enumerate(("dog", "cat", "bus", "car"))]
    told = colours.classify(image, found)
    for detection, colour in zip(found, told, strict=True):
        cosines = colours.cosines(image, detection)
        assert cosines.shape == (10,) and cosines.abs().max() <= 1 + 1e-5
        assert colour == COLOURS[int(cosines.argmax())]


def test_a_class_whose_text_matches_the_picture_wins(colours: ClipColours) -> None:
    """With the pictures' own vectors as texts, each picture is called by its name."""
    shades = [np.full((20, 20, 3), 25 * i, np.uint8) for i in range(10)]
    dog = Detection("dog", (0, 0, 20, 20), 0.9)
    pixels = torch.cat([preprocess(shade, 16) for shade in shades])
    seen = colours.net.visual_projection(colours.net.vision_model(pixel_values=pixels).pooler_output)
    colours.texts = lambda name: normalize(seen, dim=-1)
    assert [colours.classify(shade, [dog])[0] for shade in shades] == list(COLOURS)


def test_only_the_masked_pixels_matter(colours: ClipColours) -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:15, 4:15] = True
    one, other = (np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8) for seed in (0, 1))
    other[mask] = one[mask]
    bus = Detection("bus", (2, 2, 18, 18), 0.9, mask)
    assert torch.equal(colours.cosines(one, bus), colours.cosines(other, bus))
    assert not torch.equal(colours.cosines(one, Detection("bus", bus.box, 0.9)), colours.cosines(one, bus))


def test_the_protocol_names_the_weights(colours: ClipColours) -> None:
    assert colours.protocol.startswith("CLIP colours ") and len(colours.protocol.split()[-1]) == 8


def test_both_forms_of_the_tokenizer_read_alike(tmp_path: Path, weights: Path, colours: ClipColours) -> None:
    shutil.copytree(weights, tmp_path / "clip")
    words = json.loads((tmp_path / "clip" / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "clip" / "tokenizer.json").unlink()
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\n")
    assert torch.equal(ClipColours(tmp_path / "clip").texts("hot dog"), colours.texts("hot dog"))


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, weights: Path, lost: str) -> None:
    shutil.copytree(weights, tmp_path / "clip")
    (tmp_path / "clip" / lost).unlink()
    wanted = {"model.safetensors": "*.safetensors", "tokenizer.json": "vocab.json"}.get(lost, lost)
    with pytest.raises(UserError) as refusal:
        ClipColours(tmp_path / "clip")
    assert f"holds no {wanted}: put the files of openai/clip-vit-large-patch14" in str(refusal.value)
