"""Extractors give the same features whatever surrounds them, and refuse bad weights and images."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgm.data.pixels import dequantise, quantise
from fgm.evaluation.features import FeatureExtractor, RandomConvolutions, SmallClassifier, full_precision
from fgm.evaluation.pretrained_features import Clip, Dinov2, Inception, resaved_tensors, resized
from fgm.utils.errors import UserError
from fgm.utils.pretrained import hash_of_checkpoint, inception_weights
from fgm.utils.random import keyed_generator


def grey(n: int, size: int = 8) -> Tensor:
    return torch.randint(256, (n, 1, size, size), generator=keyed_generator("grey", index=0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    directory = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    directory = tmp_path_factory.mktemp("clip")
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=12,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("mode, half", [("round", 0.5), ("floor", 1.0)])
def test_quantising_error_is_within_its_step(mode: str, half: float) -> None:
    x = torch.linspace(-1, 1, 997)
    gap = x * 127.5 + 127.5 - quantise(x, mode).float()
    assert gap.abs().max() <= half + 1e-4 and (mode == "round" or gap.min() >= -1e-4)
    assert quantise(torch.tensor([-2.0, -1.0, 1.0, 2.0]), mode).tolist() == [0, 0, 255, 255]


def test_quantise_roundtrip_is_exact() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    x = dequantise(every)
    assert torch.equal(quantise(x), every) and quantise(torch.zeros(1)).item() == 128
    assert quantise(every) is quantise(every, "floor") is every and dequantise(x) is x


def extractors(dinov2: Path, clip: Path) -> list[FeatureExtractor]:
    return [SmallClassifier(), RandomConvolutions(), Dinov2(dinov2, size=28, device="cpu"), Clip(clip, device="cpu")]


def test_extractors_ignore_autocast_training_mode_and_gradients(dinov2: Path, clip: Path) -> None:
    for extractor in extractors(dinov2, clip):
        features = extractor(grey(4))
        assert features.shape == (4, extractor.dim) and features.dtype == torch.float32
        assert len(extractor.sha256) == 8 and not features.requires_grad
        net = vars(extractor)["net"]
        assert isinstance(net, nn.Module) and not isinstance(extractor, nn.Module)
        net.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(extractor(grey(4)), features)
        if extractor.id != "small-classifier":
            assert torch.equal(extractor(grey(4).expand(-1, 3, -1, -1)), features)


def test_full_precision_restores_the_settings() -> None:
    backends: Any = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv)
    before = [kind.fp32_precision for kind in kinds]
    with full_precision("cpu"):
        assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
    assert [kind.fp32_precision for kind in kinds] == before


def test_random_convolutions_depend_on_their_seed_only() -> None:
    state = torch.get_rng_state()
    a, b, c = RandomConvolutions(), RandomConvolutions(), RandomConvolutions(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a(grey(3)), b(grey(3))) and a.sha256 == b.sha256 != c.sha256


def test_clip_embeddings_have_unit_length_and_images_are_normalised(clip: Path) -> None:
    torch.testing.assert_close(Clip(clip, device="cpu")(grey(4)).norm(dim=1), torch.ones(4))
    half = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    torch.testing.assert_close(resized(half, 4, ((0.5,) * 3, (0.25,) * 3)), torch.full((1, 3, 4, 4), 2.0))


def test_missing_inception_weights_name_the_file_the_key_and_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        inception_weights()
    for part in (
        f"{tmp_path}/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth", "evaluation.suite.extractor.weights=",
        "nothing is downloaded", "SmallClassifier", "Dinov2", "RandomConvolutions",
    ):  # fmt: skip
        assert part in str(error.value)


def test_missing_inception_weights_are_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="no Inception weights at"):
        Inception()
    with pytest.raises(UserError, match=r"no Inception weights at nowhere\.pth"):
        Inception("nowhere.pth")


def test_hash_in_a_file_name_is_checked(tmp_path: Path) -> None:
    digest = sha256(b"weights").hexdigest()
    right, wrong, plain = (tmp_path / name for name in (f"net-{digest[:8]}.pth", "net-6726825d.pth", "net.pth"))
    for file in (right, wrong, plain):
        file.write_bytes(b"weights")
    assert hash_of_checkpoint(right) == hash_of_checkpoint(plain) == digest[:8]
    with pytest.raises(UserError, match="its name promises 6726825d"):
        inception_weights(str(wrong))


@pytest.mark.parametrize("content", [{"a": 1}, [1]])
def test_file_of_anything_but_named_tensors_is_a_user_error(content: object, tmp_path: Path) -> None:
    file = tmp_path / "bad.pth"
    torch.save(content, file)
    for read in (resaved_tensors, lambda file: Inception(str(file))):
        with pytest.raises(UserError, match="more than named tensors"):
            read(file)


def test_weights_of_another_network_are_a_user_error(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fill Inception-v3"):
        Inception(str(tmp_path / "other.pth"))


@pytest.mark.parametrize("kind", [Dinov2, Clip])
def test_directory_without_weights_is_a_user_error(kind: type, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        kind(tmp_path)


def test_images_of_another_type_are_a_user_error() -> None:
    with pytest.raises(UserError, match="reads uint8 images"):
        RandomConvolutions()(torch.zeros(1, 3, 8, 8))
