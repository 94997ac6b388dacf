"""Signs of failure in samples, each a number with a threshold beyond which something is wrong.

Mode collapse. Total variation between the histogram p of a classifier's answers and the prior q:

    class_tv = 1/2 sum_k |p_k - q_k|                 0 alike, 1 disjoint; a dropped class of ten makes 0.1

n draws of q itself come to about sum_k (q_k (1 - q_k) / (2 pi n))^1/2, 0.038 for ten classes and n = 1,000, so that
fewer say little; with balanced labels only misread samples count. Collapse within a class escapes it, and is seen by
the distance d(x) to the nearest OTHER sample:

    diversity = median d(x) among samples / median d(x) among as many reference points

1 alike, 0 copies, more than 1 samples that are scattered off the data. It is compared at equal n, as d shrinks with n.

Missing detail. The radial power spectrum, P(f) = mean |FFT x|^2 over images, channels and frequencies of a band of
f = (f_x^2 + f_y^2)^1/2 in cycles a pixel (BANDS, octaves up to Nyquist; the corners beyond 1/2 are left out):

    power_low, power_mid, power_high = P(samples) / P(reference)

For a linear blur of transfer function H it is the mean of |H|^2 over the reference's power in the band. Both sets have
the same borders, so that what leaks through them is in both.

THRESHOLDS says between which bounds a healthy value lies, and what to try outside of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgm.utils.records import Measurement

BANDS = {"power_low": (1 / 16, 1 / 8), "power_mid": (1 / 8, 1 / 4), "power_high": (1 / 4, 1 / 2)}  # (above, up to]
MOST_PAIRS = 2000  # points of either set, the first ones, of which distances are taken: their cost is quadratic


@dataclass(frozen=True)
class Threshold:
    """A healthy value lies in [low, high]; what a value outside means, and what helps."""

    low: float
    high: float
    below: str = ""
    above: str = ""


COLLAPSE = "mode collapse; start from the teacher, lower its guidance, or raise method.online_steps"
THRESHOLDS = {
    "class_tv": Threshold(0.0, 0.08, above=COLLAPSE),
    "diversity": Threshold(0.75, 1.33, COLLAPSE, "samples off the data; train on, or average for longer"),
    "power_high": Threshold(
        0.67,
        1.5,
        "missing detail; train on, lower method.t_star or weigh small t more",
        "grain or checkerboard; train on",
    ),
}


def total_variation(p: Tensor, q: Tensor) -> float:
    """1/2 sum |p - q| of two histograms (k,), each normalised; 1 where p is empty."""
    p, q = p.double(), q.double()
    return (p / p.sum() - q / q.sum()).abs().sum().item() / 2 if p.sum() > 0 else 1.0


def nearest_distance(x: Tensor) -> Tensor:
    """From each of x (n, d) to the nearest other one, (n,)."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(float("inf")).amin(1)


def diversity(x: Tensor, reference: Tensor) -> tuple[float, int]:
    """The ratio of medians of (n, d) and (m, d), and the number of points that both are cut to."""
    n = min(len(x), len(reference), MOST_PAIRS)
    spread, expected = (nearest_distance(points[:n].flatten(1)).median().item() for points in (x, reference))
    return spread / max(expected, 1e-12), n


def radial_power(images: Tensor) -> dict[str, Tensor]:
    """Mean power of each of the images (n, c, h, w) in every band that their size has, (n,)."""
    h, w = images.shape[-2:]
    power = torch.fft.fft2(images.double()).abs().square().mean(1) / (h * w)
    f = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(h), torch.fft.fftfreq(w), indexing="ij"))
    masks = {name: (f > low) & (f <= high + 1e-6) for name, (low, high) in BANDS.items()}
    return {name: power[:, mask].mean(1) for name, mask in masks.items() if mask.any()}


def power_ratios(power: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Of the mean powers of samples and reference, band by band."""
    return {name: (power[name].mean() / reference[name].mean().clamp_min(1e-12)).item() for name in power}


def complaints(measured: Sequence[Measurement]) -> list[str]:
    """One line for each value beyond its threshold, at most one a metric."""
    first: dict[str, Measurement] = {}
    for m in measured:
        first.setdefault(m.metric, m)
    lines = [complaint(m, THRESHOLDS[name]) for name, m in first.items() if name in THRESHOLDS]
    return [line for line in lines if line]


def complaint(m: Measurement, healthy: Threshold) -> str:
    told = healthy.below if m.value < healthy.low else healthy.above if m.value > healthy.high else ""
    return f"{m.metric} {m.value:.3g} is outside {healthy.low:g} to {healthy.high:g}: {told}" if told else ""
