"""Small classifiers: their features, their training, and the metric suites of digits and clothes."""

from pathlib import Path

import pytest
import torch
from official_files import idx, write_fashion
from torch import Tensor

from fgm.data.images import Digits
from fgm.data.pixels import dequantise
from fgm.data.published import FashionMNIST
from fgm.evaluation import measure
from fgm.evaluation.classifier import CLASSIFIERS, Dataset, accuracy, load_classifier, main, train_classifier
from fgm.evaluation.feature_metrics import OF_CLASSIFIER, DigitMetrics, FashionMetrics, blur
from fgm.evaluation.features import SmallClassifier
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator


def bars(n: int, role: str) -> tuple[Tensor, Tensor]:
    """Noisy pictures whose class is the place of a bright bar, and their labels, uint8."""
    labels = torch.arange(n) % 10
    noise = torch.randint(120, (n, 28, 28), generator=keyed_generator(role, index=0))
    rows = (torch.arange(28) // 2 == labels[:, None] + 2)[:, :, None]
    return (noise + 120 * rows).to(torch.uint8), labels.to(torch.uint8)


@pytest.fixture
def data(tmp_path: Path) -> FashionMNIST:
    write_fashion(tmp_path)
    for name, role in (("train", "a"), ("t10k", "b")):
        images, labels = bars(200, role)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            (tmp_path / f"{name}-{kind}-ubyte").write_bytes(idx(array))
            (tmp_path / f"{name}-{kind}-ubyte.gz").unlink(missing_ok=True)
    return FashionMNIST(str(tmp_path))


@pytest.mark.parametrize("space, name, side, dim", [
    ("digits", "small-classifier", 8, 32), ("fashion", "fashion-classifier", 28, 64),
])  # fmt: skip
def test_packaged_classifier_gives_features_and_logits_in_one_pass(
    space: Dataset, name: str, side: int, dim: int
) -> None:
    extractor, (net, weights) = SmallClassifier(space), load_classifier(space)
    pictures = bars(5, "c")[0][:, None, :side, :side]
    features, logits = extractor.extract(pictures)
    assert (extractor.id, extractor.sha256, extractor.dim) == (name, weights, dim)
    assert torch.equal(features, net.features(dequantise(pictures))) and torch.equal(logits, net(dequantise(pictures)))
    with pytest.raises(UserError, match=rf"{name} reads {space} \(n, 1, {side}, {side}\), not \(5, 1, 7, 7\)"):
        extractor(pictures[..., :7, :7])


def test_packaged_classifier_is_what_training_gives() -> None:
    """After a fifth of the iterations the accuracy on the test split is within three points."""
    shipped, name = load_classifier("digits")
    scans = Digits().split["test"]
    assert len(name) == 8
    again = train_classifier(CLASSIFIERS["digits"], Digits(), iterations=300)
    assert accuracy(again, *scans) == pytest.approx(accuracy(shipped, *scans), abs=0.03)


def test_training_learns_separable_classes_and_standardises_features(data: FashionMNIST) -> None:
    """Bars at ten places are classified after forty steps; features have moments 0 and 1 on the training split."""
    net = train_classifier(CLASSIFIERS["fashion"], data, iterations=40, batch_size=64)
    images, labels = data.split["test"]
    assert labels is not None and accuracy(net, images, labels) > 0.95
    features = net.features(dequantise(data.split["train"][0])).detach()
    assert features.mean(0).abs().max() < 1e-4 and (features.std(0) - 1).abs().max() < 1e-3


def test_fashion_metrics_order_real_blurred_and_noise(data: FashionMNIST) -> None:
    suite = FashionMetrics(data)
    bounds = {(m.protocol.partition(";")[0], m.metric): m.value for m in suite.reference_values()}
    real, blurred, noise = (
        bounds[k, "fd"] for k in ("floor: held-out pictures", "ceiling: blurred pictures", "ceiling: noise")
    )
    assert real < 0.2 * min(blurred, noise)
    images, labels = data.split["test"]
    measured = measure(suite, dequantise(images), labels)
    assert {m.metric for m in measured} == {*OF_CLASSIFIER, "power_low", "power_mid", "power_high"} - {"power"}
    (fd,) = (m.protocol for m in measured if m.metric == "fd")
    assert fd.startswith(f"fashion-classifier-{suite.extractor.sha256}, uint8") and "training split" in fd


def test_digit_metrics_order_real_blurred_and_noise() -> None:
    bounds = {(m.protocol.partition(";")[0], m.metric): m.value for m in DigitMetrics().reference_values()}
    assert bounds["floor: held-out scans", "fd"] < 0.1 * bounds["ceiling: blurred scans", "fd"]
    assert bounds["floor: held-out scans", "accuracy"] > 0.95 > bounds["ceiling: noise", "accuracy"]


def test_blur_keeps_a_constant() -> None:
    assert torch.equal(blur(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8))


def test_unknown_classifier_is_a_user_error_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="no classifier of fashoin; did you mean fashion"):
        main(["fashoin"])
