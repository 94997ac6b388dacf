"""Measurements that cannot be made are refused before anything is trained, with what would work."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fgm.cli.evaluate import make_evaluation
from fgm.data.folders import ImageFolder
from fgm.data.pixels import encode_png
from fgm.evaluation.evaluator import CombinedSuite, Evaluator
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.features import RandomConvolutions
from fgm.evaluation.geneval.detectors import CLIPColors, Mask2FormerDetector
from fgm.evaluation.pretrained_features import Clip, Dinov2
from fgm.training.contract import Contract, require
from fgm.utils.errors import UserError

pytestmark = pytest.mark.field
ALL = ("fd", "kid", "precision", "coverage", "diversity")


def folder(directory: Path, n: int) -> ImageFolder:
    for i in range(n):
        image = torch.randint(256, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        (directory / f"{i:06d}.png").write_bytes(encode_png(image))
    return ImageFolder(str(directory))


def refused(data: ImageFolder, suite: object) -> str:
    with pytest.raises(UserError) as error:
        require(Contract(data, evaluation=Evaluator(suite, n=100, every=0)))  # type: ignore[arg-type]
    return str(error.value)


@pytest.mark.parametrize(
    "n, needed, works",
    [
        (20, "33", "kid,precision,coverage,diversity"),
        (32, "33", "kid,precision,coverage,diversity"),
        (4, "6", "kid,diversity"),
    ],
)
def test_too_few_images_of_one_s_own_are_refused_with_the_metrics_that_work(
    n: int, needed: str, works: str, tmp_path: Path
) -> None:
    """As many images as features leave the covariance singular; a ball needs as many neighbours as it has."""
    data = folder(tmp_path, n)
    metrics = ALL if n > 5 else ALL[1:]
    line = refused(data, FeatureMetrics(RandomConvolutions(32), data, metrics=metrics))
    assert line.startswith("measurements: ") and f"needs {needed} real images or more, data ImageFolder has {n}" in line
    assert line.endswith(f"; use evaluation.suite.metrics=[{works}]")
    fits = FeatureMetrics(RandomConvolutions(32), data, metrics=tuple(works.split(",")), kid_subsets=2)
    require(Contract(data, evaluation=Evaluator(fits, n=100, every=0)))
    samples = torch.rand(40, 1, 8, 8) * 2 - 1
    assert {m.metric for m in fits.compute(fits.features(samples, None))} >= {"kid"}, "what is said to work does"


def test_a_single_image_serves_no_metric(tmp_path: Path) -> None:
    data = folder(tmp_path, 1)
    line = refused(data, FeatureMetrics(RandomConvolutions(8), data, metrics=("kid", "fd")))
    assert line.endswith("; use more images, or another evaluation=")


def test_a_suite_among_several_is_named_by_its_key(tmp_path: Path) -> None:
    data = folder(tmp_path, 20)
    pixels = FeatureMetrics(RandomConvolutions(32), data, metrics=("fd", "kid"))
    assert refused(data, CombinedSuite({"pixels": pixels})).endswith(
        "; use evaluation.suite.suites.pixels.metrics=[kid]"
    )


def test_enough_images_pass(tmp_path: Path) -> None:
    data = folder(tmp_path, 33)
    require(Contract(data, evaluation=Evaluator(FeatureMetrics(RandomConvolutions(32), data), n=100, every=0)))


@pytest.mark.parametrize("metrics, n", [(("fd",), 32), (("precision",), 5), (("kid",), 1), (("fd_infinity",), 127)])
def test_fewer_samples_than_a_metric_needs_are_refused_when_it_is_configured(
    metrics: tuple[str, ...], n: int, tmp_path: Path
) -> None:
    suite = FeatureMetrics(RandomConvolutions(32), folder(tmp_path, 40), metrics=metrics)
    with pytest.raises(UserError, match=rf"needs {n + 1} samples or more, not {n}"):
        Evaluator(suite, n=n, every=0)
    with pytest.raises(UserError, match=f"not {n}"):
        Evaluator(suite, n=1000, every=1, n_in_training=n)
    Evaluator(suite, n=n + 1, every=0)


@pytest.mark.parametrize("dim", [8, 64])
def test_a_reference_of_other_features_is_refused_when_it_is_configured(dim: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", mu=np.zeros(dim), sigma=np.eye(dim))
    with pytest.raises(UserError, match=r"reference\.npz holds mu .* the extractor gives 32 features"):
        FeatureMetrics(RandomConvolutions(32), reference=str(tmp_path / "reference.npz"), metrics=("fd",))


@pytest.mark.parametrize("reads", [Mask2FormerDetector, CLIPColors, Dinov2, Clip])
@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_directory_without_a_network_is_refused_when_it_is_configured(
    reads: type, place: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{place} has no config\.json: put the files of"):
        reads(str(tmp_path / place))


def test_a_folder_is_measured_against_enough_images_or_not_at_all(tmp_path: Path) -> None:
    """As in training, before features are computed, under the keys of the command."""
    folder(tmp_path, 20)
    node = {
        "_target_": "fgm.evaluation.evaluator.Evaluator", "every": 0, "n": 100,
        "suite": {
            "_target_": "fgm.evaluation.feature_metrics.FeatureMetrics", "metrics": ["fd", "kid"],
            "extractor": {"_target_": "fgm.evaluation.features.RandomConvolutions", "dim": 32},
            "data": {"_target_": "fgm.data.folders.ImageFolder", "directory": str(tmp_path)},
        },
    }  # fmt: skip
    with pytest.raises(UserError, match=r"data ImageFolder has 20; use evaluator\.suite\.metrics=\[kid\]$"):
        make_evaluation(node, n=100)
    with pytest.raises(UserError, match=r"needs 33 samples or more, not 20"):
        make_evaluation(node | {"suite": node["suite"] | {"data": {"_target_": "fgm.data.images.Digits"}}}, n=20)
