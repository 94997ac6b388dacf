"""reference: the file holds the moments of the suite's features, and bad input is one line."""

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import Said, refused

import fgm.cli.evaluate
from fgm.data.images import Digits
from fgm.evaluation.feature_metrics import DigitMetrics
from fgm.evaluation.sources import DatasetSource, export_images


def test_a_reference_holds_the_moments_of_the_suite(tmp_path: Path, capsys: Said) -> None:
    fgm.cli.evaluate.reference(["data=digits", f"out={tmp_path / 'refs.npz'}"])
    with np.load(tmp_path / "refs.npz") as moments:
        assert set(moments) == {"mu", "sigma", "n"} and moments["n"] == len(Digits().split["train"][0])
        expected = DigitMetrics().reference.moments
        np.testing.assert_allclose(moments["mu"], expected.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(moments["sigma"], expected.covariance.numpy(), atol=1e-5)
    assert "mu and sigma of 1433 images, 32 features of digits" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["refs.npz"]


def test_a_reference_of_a_folder_is_that_of_its_images(tmp_path: Path) -> None:
    source = DatasetSource.of_data(Digits(), "digits", "test", 60)
    export_images(source, tmp_path / "png", "edm", batch=60)
    asked = [f"samples_dir={tmp_path / 'png'}", "recursive=true", "n=50", f"out={tmp_path / 'refs.npz'}"]
    fgm.cli.evaluate.reference(asked)
    with np.load(tmp_path / "refs.npz") as moments:
        features = DigitMetrics().features(source.take(range(50)).x, None)["features"].double().numpy()
        np.testing.assert_allclose(moments["mu"], features.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments["sigma"], np.cov(features, rowvar=False), atol=1e-10)


REFERENCE = {
    "unknown data": (["data=digit"], "there is no data=digit; did you mean digits"),
    "points": (["data=ring"], "data = ring: holds points of shape (2,), not images"),
    "unlimited": (["data=shapes"], "data = shapes is unlimited: say how many with n="),
    "unknown split": (["data=digits", "split=validation"], "split = validation: digits has train, test"),
    "neither": ([], "give data=<name> or samples_dir=<folder>"),
    "too many": (["data=digits", "n=5000"], "1433 images, but n = 5000 needed"),
    "no features": (
        ["data=digits", "evaluator=shape_eval", "evaluator.suite.size=32", "evaluator.suite.shapes=4"],
        "evaluator = shape_eval has no features; choose one that has, such as digits",
    ),
    "no npz": (["data=digits", "out=refs.npy"], "must end with .npz"),
}


@pytest.mark.parametrize("own, message", REFERENCE.values(), ids=REFERENCE)
def test_what_is_no_reference_is_one_line(
    own: list[str], message: str, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"out={tmp_path / 'refs.npz'}", *own]
    assert message in refused(fgm.cli.evaluate.reference, arguments, capsys, monkeypatch)
    assert list(tmp_path.iterdir()) == []
