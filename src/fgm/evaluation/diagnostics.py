"""Signs of failure in samples; THRESHOLDS has the range of healthy values, and what to try outside of it.

Mode collapse. Total variation between the histogram p of predicted classes and the prior q:

    class_tv = 1/2 sum_k |p_k - q_k|                 0 equal, 1 disjoint; dropping one of ten classes gives 0.1

n draws of q itself give about sum_k (q_k (1 - q_k) / (2 pi n))^1/2, 0.038 for ten classes and n = 1,000, so that fewer
samples say little; with balanced labels only misclassified samples count. Collapse within a class does not show there,
but in the distance d(x) to the nearest OTHER sample:

    diversity = median d(x) among samples / median d(x) among as many reference points

1 equal, 0 copies, above 1 samples that scatter off the data. Compare it at equal n, because d shrinks with n.

Missing detail. The radial power spectrum, P(f) = mean |FFT x|^2 over images, channels and frequencies of a band of
f = (f_x^2 + f_y^2)^1/2 in cycles a pixel (BANDS, octaves up to Nyquist, without the corners beyond 1/2):

    power_low, power_mid, power_high = P(samples) / P(reference)

For a linear blur of transfer function H it is the mean of |H|^2 over the reference's power in the band.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgm.utils.records import Measurement

BANDS = {"power_low": (1 / 16, 1 / 8), "power_mid": (1 / 8, 1 / 4), "power_high": (1 / 4, 1 / 2)}  # (above, up to]
MAX_POINTS = 2000  # of either set, the first ones, whose distances are taken: the cost is quadratic


@dataclass(frozen=True)
class Threshold:
    """The healthy range [low, high], and for values outside the likely cause and remedy."""

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
    """Return 1/2 sum |p - q| of two histograms (k,), each normalised; 1 if p is empty."""
    p, q = p.double(), q.double()
    return (p / p.sum() - q / q.sum()).abs().sum().item() / 2 if p.sum() > 0 else 1.0


def diversity(x: Tensor, reference: Tensor) -> tuple[float, int]:
    """Return the ratio of medians for (n, d) and (m, d), and the number of points that both are cut to."""
    n = min(len(x), len(reference), MAX_POINTS)
    spread, expected = (nearest_distance(points[:n].flatten(1)).median().item() for points in (x, reference))
    return spread / max(expected, 1e-12), n


def nearest_distance(x: Tensor) -> Tensor:
    """Return the distance from each of x (n, d) to the nearest other one, (n,)."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(float("inf")).amin(1)


def radial_power(images: Tensor) -> dict[str, Tensor]:
    """Return the mean power of each image (n, c, h, w) in every band that exists at its size, (n,) each."""
    h, w = images.shape[-2:]
    power = torch.fft.fft2(images.double()).abs().square().mean(1) / (h * w)
    f = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(h), torch.fft.fftfreq(w), indexing="ij"))
    masks = {name: (f > low) & (f <= high + 1e-6) for name, (low, high) in BANDS.items()}
    return {name: power[:, mask].mean(1) for name, mask in masks.items() if mask.any()}


def power_ratios(power: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Return the ratio of the mean powers of samples and reference, band by band."""
    return {name: (power[name].mean() / reference[name].mean().clamp_min(1e-12)).item() for name in power}


def warnings_of(measured: Sequence[Measurement]) -> list[str]:
    """Return a line for each metric whose first value is outside its healthy range."""
    lines, seen = [], set()
    for m in measured:
        if m.metric in THRESHOLDS and m.metric not in seen:
            seen.add(m.metric)
            healthy = THRESHOLDS[m.metric]
            advice = healthy.below if m.value < healthy.low else healthy.above if m.value > healthy.high else ""
            if advice:
                lines.append(f"{m.metric} {m.value:.3g} is outside {healthy.low:g} to {healthy.high:g}: {advice}")
    return lines
