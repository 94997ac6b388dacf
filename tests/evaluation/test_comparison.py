"""Signs of failure equal closed forms, and each fault is reported by its own metric."""

import pytest
import torch
from torch import Tensor

from fgm.data.images import Digits
from fgm.evaluation import measure
from fgm.evaluation.comparison import BANDS, diversity, nearest_distance, power_ratios, radial_power, total_variation
from fgm.evaluation.feature_metrics import DigitMetrics, blur
from fgm.training.diagnostics import warnings_of
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement


def noise(*shape: int, index: int = 0) -> Tensor:
    return torch.randn(shape, generator=keyed_generator("symptoms", index=index), dtype=torch.float64)


def test_total_variation_is_half_the_distance_of_the_shares() -> None:
    p, q = torch.tensor([1, 1, 0, 0]), torch.tensor([10, 0, 0, 10])
    assert total_variation(p, q) == pytest.approx(0.5)
    assert total_variation(p, 7 * p) == 0 and total_variation(torch.zeros(4), q) == 1
    assert total_variation(torch.tensor([1, 0]), torch.tensor([0, 1])) == 1


def test_class_tv_of_draws_of_the_prior_is_as_documented() -> None:
    prior, n = torch.tensor([0.1] * 10), 1000
    drawn = torch.multinomial(prior, 200 * n, replacement=True, generator=keyed_generator("classes", index=0)).view(
        200, n
    )
    distances = [total_variation(row.bincount(minlength=10), prior) for row in drawn]
    assert sum(distances) / 200 == pytest.approx(0.038, rel=0.05) and max(distances) < 0.08


def test_class_tv_of_a_dropped_class_of_ten_is_a_tenth() -> None:
    assert total_variation(torch.tensor([1] * 9 + [0]), torch.ones(10)) == pytest.approx(0.1)


def test_diversity_scales_with_the_samples_and_ignores_shift_and_rotation() -> None:
    x, turn = noise(300, 4), torch.linalg.qr(noise(4, 4, index=1))[0]
    assert diversity(3 * x @ turn + 5, x) == (pytest.approx(3), 300)
    assert diversity(torch.cat([x, x]), x)[0] == pytest.approx(1), "both are cut to the first 300"
    assert diversity(x.repeat_interleave(2, 0), x)[0] == 0
    assert diversity(noise(500, 4, index=2), noise(400, 4, index=3))[0] == pytest.approx(1, abs=0.15)


def test_nearest_distance_is_to_another_point() -> None:
    x = torch.tensor([[0.0, 0], [3, 4], [3, 5]])
    assert nearest_distance(x).tolist() == [5, 1, 1]


def test_power_of_white_noise_is_its_variance_in_every_band() -> None:
    power = radial_power(2 * noise(400, 1, 32, 32))
    assert power.keys() == BANDS.keys()
    assert [p.mean().item() for p in power.values()] == pytest.approx([4] * 3, rel=0.05)


def test_wave_has_power_only_in_its_band() -> None:
    for period, band in ((10 + 2 / 3, "power_low"), (5 + 1 / 3, "power_mid"), (8 / 3, "power_high")):
        wave = (2 * torch.pi * torch.arange(32, dtype=torch.float64) / period).cos().expand(1, 1, 32, 32)
        power = radial_power(wave)
        assert max(power, key=lambda name: power[name]) == band
        assert sum(power.values()) - power[band] < 1e-12


def test_power_ratio_of_a_circular_blur_is_its_squared_transfer_function() -> None:
    """Mean of two neighbours: |H|^2 = cos^2(pi f_x), the same for every image."""
    x = noise(50, 3, 16, 16)
    f = torch.fft.fftfreq(16, dtype=torch.float64)
    fx, fy = torch.meshgrid(f, f, indexing="xy")
    power = torch.fft.fft2(x).abs().square().mean((0, 1))
    ratios = power_ratios(radial_power((x + x.roll(1, -1)) / 2), radial_power(x))
    for name, (low, high) in BANDS.items():
        mask = (torch.hypot(fx, fy) > low + 1e-9) & (torch.hypot(fx, fy) <= high + 1e-6)
        expected = (power * (torch.pi * fx).cos().square())[mask].sum() / power[mask].sum()
        assert ratios[name] == pytest.approx(expected.item(), rel=1e-6)


def test_warnings_are_one_line_per_unhealthy_metric() -> None:
    def row(metric: str, value: float) -> Measurement:
        return Measurement(metric, value, 10, "test")

    assert warnings_of([row("fd", 1e9), row("class_tv", 0.05), row("diversity", 1.0), row("power_high", 0.9)]) == []
    (line,) = warnings_of([row("class_tv", 0.3), row("class_tv", 0.4)])
    assert line.startswith("class_tv 0.3 is outside 0 to 0.08: mode collapse")
    below, above = warnings_of([row("power_high", 0.1), row("diversity", 2.0)])
    assert "missing detail" in below and "off the data" in above


DIGITS = Digits()
SCANS, LABELS = DIGITS.split["train"]
FAULTS = {
    "none": (SCANS[700:], LABELS[700:], ""),
    "a class is missing": (SCANS[LABELS != 9][:900], LABELS[:900], "class_tv"),
    "few templates": (
        SCANS[:70].repeat(10, 1, 1, 1) + 0.02 * noise(700, 1, 8, 8).float(),
        LABELS[:70].repeat(10),
        "div",
    ),
    "blur": (blur(SCANS), LABELS, "power_high"),
    "grain": (SCANS + 0.6 * noise(len(SCANS), 1, 8, 8).float(), LABELS, "diversity"),
    "checkerboard": (SCANS + (torch.arange(8)[:, None] + torch.arange(8)) % 2, LABELS, "power_high"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_moves_its_metric(fault: str) -> None:
    x, labels, metric = FAULTS[fault]
    seen = warnings_of(measure(DigitMetrics(), x.float(), labels))
    assert (seen == []) if not metric else any(line.startswith(metric) for line in seen)
