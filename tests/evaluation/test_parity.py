"""Our distances equal torch-fidelity's and torchmetrics' on the same pictures with the same network, to 1e-4.

Two networks: a tiny one that is registered with torch-fidelity, and the true Inception-v3 architecture with RANDOM
weights in a file given by path. The published weights are not needed: what agrees is resize, network and statistics.
"""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import fgm.cli.evaluate
from benchmarks.evaluation import UntrainedInception
from fgm.evaluation.distances import kid, prdc
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.features import FeatureSet, NetworkExtractor
from fgm.evaluation.frechet import Moments, frechet_distance
from fgm.evaluation.metrics import FrechetDistance
from fgm.evaluation.pretrained_features import Inception
from fgm.utils.random import keyed_generator

SHARED = {"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True, "batch_size": 8}
FEW = 8  # through all of Inception; a tenth of a second each


class Tiny(FeatureExtractorBase):
    """12 features: the mean and the deviation over pixels of six random convolutions."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.kernel = nn.Parameter(torch.randn(6, 3, 5, 5, generator=keyed_generator("tiny", index=0)) / 10)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        maps = nn.functional.conv2d(images.float() / 32 - 4, self.kernel)
        return (torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("12",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "12"


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    register_feature_extractor("tiny", Tiny)
    yield
    del FEATURE_EXTRACTORS_REGISTRY["tiny"]


class OneLayer(NetworkExtractor):
    """A network of torch-fidelity's kind as an extractor of ours."""

    def __init__(self, net: FeatureExtractorBase, dim: int) -> None:
        super().__init__("one-layer", "00000000", dim, net, "cpu")

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return self.net(images)[0], None


def blobs(n: int, index: int, contrast: float) -> Tensor:
    """Smooth random pictures, uint8 (n, 3, 32, 32)."""
    coarse = torch.randn(n, 3, 6, 6, generator=keyed_generator("blobs", index=index))
    smooth = nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
    return (128 + contrast * smooth).clamp(0, 255).to(torch.uint8)


def folder(images: Tensor, path: Path) -> str:
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{i:04d}.png")
    return str(path)


def test_distances_equal_torch_fidelity_on_folders(tmp_path: Path) -> None:
    samples, real = blobs(300, 0, 50), blobs(250, 1, 60)
    theirs = calculate_metrics(
        input1=folder(samples, tmp_path / "samples"), input2=folder(real, tmp_path / "real"), feature_extractor="tiny",
        fid=True, kid=True, prc=True, kid_subsets=20, kid_subset_size=100, **SHARED,
    )  # fmt: skip
    x, y = (FeatureSet.extract(OneLayer(Tiny("tiny", ["12"]), 12), images, 64) for images in (samples, real))
    ours, near = kid(x.features, y.features, 20, 100), prdc(x.features, y.features)
    assert theirs["frechet_inception_distance"] == pytest.approx(frechet_distance(x.moments, y.moments), rel=1e-4)
    assert theirs["kernel_inception_distance_mean"] == pytest.approx(ours.mean, rel=1e-4)
    assert theirs["kernel_inception_distance_std"] == pytest.approx(ours.std, rel=1e-4)
    assert (theirs["precision"], theirs["recall"]) == pytest.approx((near.precision, near.recall), rel=1e-4)
    assert 0.1 < near.precision < 1 and 0.1 < near.recall < 1


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
def test_distances_equal_torchmetrics() -> None:
    """Its KID shuffles with the global generator, so that whole sets are compared, where order does not matter."""
    samples, real = blobs(200, 0, 50), blobs(200, 1, 60)
    extractor = OneLayer(Tiny("tiny", ["12"]), 12)

    class Net(nn.Module):
        num_features = extractor.dim

        def forward(self, images: Tensor) -> Tensor:
            return extractor(images)

    fid, kernel = FrechetInceptionDistance(Net()), KernelInceptionDistance(Net(), subsets=1, subset_size=200)
    for metric in (fid, kernel):
        metric.update(real, real=True)
        metric.update(samples, real=False)
    x, y = (FeatureSet.extract(extractor, images) for images in (samples, real))
    assert fid.compute().item() == pytest.approx(frechet_distance(x.moments, y.moments), rel=1e-4)
    mmd = kid(x.features, y.features, subsets=1, subset_size=200).mean
    with torch.random.fork_rng(devices=[]):
        assert kernel.compute()[0].item() == pytest.approx(mmd, rel=1e-4)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A state dict of Inception-v3 with random weights whose activations keep their scale."""

    path = tmp_path_factory.mktemp("weights") / "random-inception.pth"
    torch.save(UntrainedInception("cpu").net.state_dict(), path)
    return str(path)


def test_fd_of_inceptions_early_layer_equals_torchmetrics(random_inception: str) -> None:
    """Without antialias, which is its default and no published protocol's."""
    samples, real = blobs(65, 0, 50), blobs(65, 1, 60)  # one more than there are features
    net = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], feature_extractor_weights_path=random_inception)
    early = OneLayer(net, 64)
    x, y = (FeatureSet.extract(early, images, 8) for images in (samples, real))
    metric = FrechetInceptionDistance(64, feature_extractor_weights_path=random_inception, antialias=False)
    for part in range(0, 65, 8):
        metric.update(real[part : part + 8], real=True)
        metric.update(samples[part : part + 8], real=False)
    assert metric.compute().item() == pytest.approx(frechet_distance(x.moments, y.moments), rel=1e-4)


def test_distances_of_inceptions_last_layer_equal_torch_fidelity(random_inception: str, tmp_path: Path) -> None:
    samples, real = blobs(FEW, 0, 50), blobs(FEW, 1, 60)
    extractor = Inception(random_inception, device="cpu")
    x, y = (FeatureSet.extract(extractor, images) for images in (samples, real))
    theirs = calculate_metrics(
        input1=folder(samples, tmp_path / "samples"), input2=folder(real, tmp_path / "real"), fid=True, kid=True,
        prc=True, kid_subsets=5, kid_subset_size=6, feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=random_inception, **SHARED,
    )  # fmt: skip
    singular = [Moments(f.moments.mean, f.moments.covariance, None) for f in (x, y)]  # n would be refused
    assert theirs["frechet_inception_distance"] == pytest.approx(frechet_distance(*singular), rel=1e-4)
    ours, near = kid(x.features, y.features, 5, 6), prdc(x.features, y.features)
    assert theirs["kernel_inception_distance_mean"] == pytest.approx(ours.mean, rel=1e-4)
    assert (theirs["precision"], theirs["recall"]) == pytest.approx((near.precision, near.recall))
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=random_inception, antialias=False)
    metric.update(real, real=True)
    ours_of_real = FrechetDistance(x.moments)
    ours_of_real.update(y.features)
    torch.testing.assert_close(metric.real_features_sum, ours_of_real.total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metric.real_features_cov_sum, ours_of_real.outer, rtol=1e-4, atol=1e-5)
    assert x.logits is not None and x.logits.shape == (FEW, 1008)


def test_evaluation_needs_no_network(
    random_inception: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of docs/evaluation.md, with a stand-in for the file, few pictures, and no way to the network."""

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("something wanted to reach the network")

    monkeypatch.setattr(socket, "socket", closed)
    real = {"train": (blobs(FEW, 1, 60) / 127.5 - 1, None)}
    monkeypatch.setattr("fgm.evaluation.comparison.real_images", lambda data, part: real[part])
    monkeypatch.setattr(FeatureMetrics, "reference_values", lambda self: [])
    evaluator = ["evaluator=fid_fidelity", f"evaluator.suite.extractor.weights={random_inception}", "data=digits"]
    fewer = ["evaluator.suite.metrics=[kid]", "evaluator.suite.kid_subsets=2"]
    pictures = f"samples_dir={folder(blobs(FEW, 0, 50), tmp_path / 'png')}"
    fgm.cli.evaluate.main([pictures, *evaluator, *fewer, f"outputs={tmp_path}"])
    (path,) = tmp_path.glob("evaluation/*/results.json")
    (row,) = json.loads(path.read_text())["results"]
    x, y = (FeatureSet.extract(Inception(random_inception, device="cpu"), blobs(FEW, *k)) for k in ((0, 50), (1, 60)))
    assert row["metric"] == "kid" and row["value"] == pytest.approx(kid(x.features, y.features, 2, FEW).mean, rel=1e-5)
    assert row["protocol"].startswith("torch-fidelity, inception-") and str(path) in capsys.readouterr().out
