"""Names, protocols and refusals of feature metrics; their values are those of the pure functions."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fgm.cli.checks import check
from fgm.data.images import Digits
from fgm.evaluation import measure
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.feature_metrics import DigitMetrics, FeatureMetrics
from fgm.evaluation.features import PUBLISHED, FeatureSet, RandomConvolutions, SmallClassifier, protocol_of
from fgm.evaluation.frechet import frechet_distance
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement

INCEPTION = SimpleNamespace(id="inception", sha256="6726825d", dim=2048, resize="bilinear as TensorFlow 1")
RANDOM = SimpleNamespace(id="inception", sha256="00000000", dim=2048, resize="bilinear as TensorFlow 1")


class Noise:
    """Pictures without a split: uniform noise."""

    shape, num_classes, std, split = (3, 8, 8), 0, 0.5, None

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return 2 * torch.rand(n, *self.shape, generator=generator) - 1, None


@pytest.fixture(autouse=True)
def small_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.evaluation.comparison.FRESH_DRAWS", 2000)


def pictures(n: int, index: int = 0) -> Tensor:
    return Noise().draw(n, keyed_generator("protocols", index=index))[0]


def suite(**settings: object) -> FeatureMetrics:
    return FeatureMetrics(**({"extractor": RandomConvolutions(8), "data": Noise(), "kid_subsets": 3} | settings))


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_inception_under_a_published_protocol_and_n_gives_fid(name: str) -> None:
    protocol = protocol_of(name, INCEPTION)
    n = protocol.n or 1234
    assert protocol.frechet_name(INCEPTION, n) == "fid"
    assert protocol.frechet_name(RANDOM, n) == protocol.frechet_name(SmallClassifier(), n) == "fd"
    assert protocol_of("own", INCEPTION).frechet_name(INCEPTION, n) == "fd"
    assert protocol.label(INCEPTION, n).startswith(f"{name}, inception-6726825d, uint8")
    if protocol.n:
        assert protocol.frechet_name(INCEPTION, 10_000) == "fd"
        assert protocol.label(INCEPTION, 10_000).startswith(f"{name} but for n = 50000, inception-6726825d")


def test_label_states_quantisation_and_resize() -> None:
    assert protocol_of("dmd2-edm", INCEPTION).label(INCEPTION, 50_000) == "dmd2-edm, inception-6726825d, uint8 by floor"
    assert protocol_of("own", INCEPTION).label(INCEPTION, 9) == "inception-6726825d, bilinear as TensorFlow 1, uint8"
    assert protocol_of("own", SmallClassifier()).label(SmallClassifier(), 9) == "small-classifier-843d80fd, uint8"


def test_feature_metrics_are_the_pure_functions() -> None:
    x, extractor = pictures(300), RandomConvolutions(8)
    measured = {m.metric: m for m in measure(suite(metrics=("fd", "fd_infinity", "kid", "cmmd", "coverage")), x, None)}
    assert list(measured) == ["fd", "fd_infinity", "kid", "rbf_mmd", "coverage"]
    bank = FeatureSet.extract(extractor, (x * 127.5 + 127.5).round().byte(), 100)
    reference = suite().reference
    assert measured["fd"].value == pytest.approx(frechet_distance(bank.moments, reference.moments), rel=1e-9)
    assert measured["fd"].protocol == f"random-convolutions-{extractor.sha256}, uint8, 2000 draws"
    assert measured["kid"].protocol.endswith("2000 draws, 3 subsets of 300")
    assert measured["coverage"].n == 300 and measured["coverage"].protocol.endswith("k = 5, as many real")
    for m in measured.values():
        low, high = m.extra.get("ci95", [m.value, m.value])
        assert low <= m.value <= high
        assert Measurement.from_row(m.row()) == m


def test_distance_to_saved_moments_equals_distance_to_the_data(tmp_path: Path) -> None:
    suite().reference.moments.save(tmp_path / "noise.npz")
    from_data = measure(suite(metrics=("fd",)), pictures(200), None)[0]
    from_file = measure(suite(metrics=("fd",), reference=str(tmp_path / "noise.npz")), pictures(200), None)[0]
    assert from_file.value == pytest.approx(from_data.value, abs=1e-12)
    assert "uint8, noise.npz " in from_file.protocol
    assert suite(metrics=("fd",), data=None, reference=str(tmp_path / "noise.npz")).reference_values() == []


def test_floor_and_ceilings_are_ordered() -> None:
    """For uniform noise the ceiling of clipped normal noise is near and the blurred one far."""
    bounds = {m.protocol.partition(";")[0]: m.value for m in suite(metrics=("fd",)).reference_values()}
    assert bounds["floor: held-out pictures"] < bounds["ceiling: noise"] < bounds["ceiling: blurred pictures"]


def test_random_convolutions_distinguish_blurred_digits() -> None:
    data = SimpleNamespace(split=Digits().split)
    fd = {m.protocol.partition(";")[0]: m.value for m in suite(data=data, metrics=("fd",)).reference_values()}
    assert 100 * fd["floor: held-out pictures"] < min(fd["ceiling: blurred pictures"], fd["ceiling: noise"])


def test_batch_size_does_not_change_features() -> None:
    images = (pictures(20) * 127 + 128).byte()
    whole, parts = (FeatureSet.extract(RandomConvolutions(8), images, batch) for batch in (None, 7))
    torch.testing.assert_close(whole.features, parts.features)
    assert torch.equal(whole.subset(5), whole.subset(5)) and len(whole.subset(50)) == 20


def test_digit_metrics_keep_their_recorded_names_protocols_and_values() -> None:
    x, labels = Digits().split["test"]
    measured = {m.metric: m for m in measure(DigitMetrics(), x, labels)}
    symptoms = ["class_tv", "diversity", "power_low", "power_mid", "power_high"]
    assert list(measured) == ["fd", "kid", "precision", "recall", "density", "coverage", "accuracy", *symptoms]
    assert measured["fd"].protocol == "small-classifier-843d80fd, uint8, training split"
    assert measured["accuracy"].protocol == "small-classifier-843d80fd, uint8"
    assert measured["fd"].value == pytest.approx(0.087867, rel=1e-3)
    assert measured["accuracy"].value == pytest.approx(0.975275, rel=1e-4)
    assert measured["precision"].value > 0.8 and measured["recall"].value > 0.8 and measured["kid"].value < 0.02
    assert [m.metric for m in measure(DigitMetrics(), x, None)] == [name for name in measured if name != "accuracy"]


def test_bias_is_warned_of_once_per_n(caplog: pytest.LogCaptureFixture) -> None:
    subject = suite(metrics=("fd",))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            measure(subject, pictures(100), None)
        measure(subject, pictures(160), None)
    assert len(caplog.records) == 1
    assert "fd of 100 samples in 8 features: a perfect generator would show about" in caplog.text
    assert "at n = 100, " in caplog.text and "at n = 50000" in caplog.text


@pytest.mark.parametrize("settings, message", [
    ({"data": None}, "compares with something"),
    ({"metrics": ("fid",)}, "there is no metric 'fid'; did you mean fd"),
    ({"metrics": ("accuracy",)}, "random-convolutions does not read the data's labels"),
    ({"protocol": "EDM"}, "protocol = EDM: must be one of edm, torch-fidelity"),
    ({"reference": "none.npz"}, "kid compares features one by one"),
    ({"reference": "none.npz", "metrics": ("fd",)}, "there is no reference file none.npz"),
])  # fmt: skip
def test_impossible_suite_is_a_user_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        suite(**settings)


def test_too_few_or_infinite_samples_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fd in the 8 features of random-convolutions needs 9 samples or more, not 8"):
        measure(suite(), pictures(8), None)
    assert measure(suite(metrics=("kid",)), pictures(8), None)[0].n == 8
    with pytest.raises(UserError, match="not finite: the generator has diverged"):
        measure(suite(), pictures(20) / 0, None)
    small = replace(FeatureSet.extract(RandomConvolutions(8), (pictures(8) * 127 + 128).byte()).moments)
    small.save(tmp_path / "small.npz")
    with pytest.raises(UserError, match="8 real images cannot fill a covariance of 8 features"):
        suite(metrics=("fd",), reference=str(tmp_path / "small.npz"))
    with pytest.raises(UserError, match="fd_infinity in the 8 features of random-convolutions needs 32"):
        measure(suite(metrics=("fd_infinity",)), pictures(31), None)
    with pytest.raises(UserError, match="fd in the 8 features"):  # before anything is trained
        Evaluator(suite(), n=100, every=10, n_in_training=8)
    assert Evaluator(suite(), n=100, every=0, n_in_training=8).n == 100


def test_reference_values_leave_out_metrics_that_need_more_held_out_images() -> None:
    x, labels = Digits().split["test"]
    data = SimpleNamespace(split={"train": Digits().split["train"], "test": (x[:20], labels[:20])})
    metrics = ("fd", "kid", "accuracy")
    bounds = FeatureMetrics(SmallClassifier(), data, metrics=metrics, kid_subsets=2).reference_values()
    assert [m.metric for m in bounds] == ["kid", "accuracy"] * 3


def test_config_of_a_suite_is_checked() -> None:
    node = {
        "_target_": "fgm.evaluation.feature_metrics.FeatureMetrics", "protocol": "edm", "metrics": ["fd"], "reference": "edm.npz",
        "extractor": {"_target_": "fgm.evaluation.pretrained_features.Inception", "weights": None},
    }  # fmt: skip
    check(node)
    for wrong in ({"protocol": "fid"}, {"kid_subsets": 0}, {"metrics": "fd"}, {"extractr": 1}):
        with pytest.raises(UserError):
            check(node | wrong)
