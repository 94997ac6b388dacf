"""Scores of prompts: every image belongs to a prompt, every prompt to a tag, and an image is correct or not.

    score of a tag     share of its images that are correct
    overall            mean of the tags' scores, UNWEIGHTED: the number that papers call GenEval
    images             share of all images that are correct
    prompts            share of the prompts with at least one correct image

Images of one prompt are not independent, so the 95 % interval of `overall` resamples PROMPTS, within their tags and with
replacement (fgm.evaluation.distances.bootstrap). It shows how far the number would move with other prompts of the same
kinds and other noise.

A suite goes through its prompts in rounds: one of each tag, then the next, and within a tag round after round over its
prompts in a fixed random order. However many images are drawn, they are balanced over the tags, as far as these reach,
and over the prompts of a tag to within one: during training the same short beginning is used again and again, at the end
all of it. After the last prompt the first one follows.

ColorStatistics has prompts without a score: the colors of their images, which drift where a distillation goes wrong.
Read them beside the teacher's.

    pixel_mean, pixel_std    of the pixels in [-1, 1]
    saturation               mean of (max - min)/max over the channels in [0, 1]; guidance and long training raise it
    clipped                  share of values at either end of the range
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fgm.data.encodings import PromptCache
from fgm.data.geneval import Metadata
from fgm.data.pixels import dequantise, quantise
from fgm.evaluation import Features
from fgm.evaluation.distances import Interval, bootstrap
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1], the 95 % interval of `overall`, and the numbers of images, in all and of each tag."""

    overall: float
    interval: Interval
    tags: dict[str, float]
    images: float
    prompts: float
    n: int
    n_of_tag: dict[str, int]

    def measurement(self, protocol: str, nfe: int, weights: str, metric: str = "geneval") -> Measurement:
        """Return overall, with all other scores beside it."""
        extra = {"ci95": self.interval, "images": self.images, "prompts": self.prompts}
        return Measurement(metric, self.overall, self.n, protocol, nfe, weights, extra | self.tags)

    def describe(self, metric: str) -> str:
        """Return all scores as text."""
        low, high = self.interval
        tags = "  ".join(f"{tag} {value:.3f}" for tag, value in self.tags.items())
        overall = f"{metric} {self.overall:.4f}, 95 % interval {low:.4f} to {high:.4f}, {self.n} images"
        return f"{overall}\n{tags}\nimages {self.images:.4f}  prompts {self.prompts:.4f}"

    def measurements(self, metric: str, protocol: str) -> list[Measurement]:
        """Return overall with its interval as <metric>, and the score of each tag as <metric>_<tag>."""
        overall = Measurement(metric, self.overall, self.n, protocol, extra={"ci95": self.interval})
        tags = self.tags.items()
        return [overall, *(Measurement(f"{metric}_{tag}", v, self.n_of_tag[tag], protocol) for tag, v in tags)]


def summarize(tags: Sequence[str], prompts: Sequence[Any], correct: Sequence[bool]) -> Scores:
    """Return the scores of images, given the tag and the prompt (its text or a number) of each."""
    groups: dict[str, dict[Any, list[bool]]] = {}
    for tag, prompt, right in zip(tags, prompts, correct, strict=True):
        groups.setdefault(tag, {}).setdefault(prompt, []).append(bool(right))
    images = {tag: np.concatenate(list(group.values())) for tag, group in groups.items()}
    means = {tag: float(values.mean()) for tag, values in images.items()}
    shares = [np.array([float(np.mean(group[p])) for p in sorted(group)]) for group in groups.values()]
    prompts_correct = float(np.mean(np.concatenate(shares) > 0))
    overall, n_of_tag = float(np.mean(list(means.values()))), {tag: len(values) for tag, values in images.items()}
    return Scores(overall, bootstrap(shares), means, float(np.mean(correct)), prompts_correct, len(correct), n_of_tag)


class PromptScore:
    """Base of suites with prompts; a prompt id is a position in `sequence`.

    Args:
        metric: name of the score.
        sequence: one prompt for each image, in their order.
    """

    def __init__(self, metric: str, sequence: Sequence[Metadata]) -> None:
        self.metric, self.sequence, self.num_classes = metric, list(sequence), len(sequence)

    def prompt_ids(self, indices: Tensor) -> Tensor:
        return indices.cpu() % len(self.sequence)

    def prompts(self, prompt_ids: Tensor) -> list[str]:
        return [self.sequence[i].prompt for i in prompt_ids.tolist()]

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        raise NotImplementedError

    def protocol(self, prompt_ids: Tensor) -> str:
        """Return all that defines a score of these prompts, except for the images."""
        raise NotImplementedError

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        prompt_ids = self.require_prompt_ids(labels)
        return {"prompt_id": prompt_ids, "correct": torch.tensor([v for v, _ in self.grades(x_0, prompt_ids)])}

    def compute(self, features: Features) -> list[Measurement]:
        prompts = [self.sequence[i] for i in features["prompt_id"].tolist()]
        scores = summarize([m.tag for m in prompts], [m.prompt for m in prompts], features["correct"].tolist())
        return scores.measurements(self.metric, self.protocol(features["prompt_id"]))

    def require_prompt_ids(self, labels: Tensor | None) -> Tensor:
        """Return the prompt ids of samples.

        Raises:
            UserError: the labels are not prompt ids of this suite.
        """
        if labels is None or (len(labels) and int(labels.max()) >= len(self.sequence)):
            raise UserError(
                f"{self.metric} needs samples of its own prompts: draw them by make eval, or export them by make "
                "export ARGS=format=png, which writes their numbers as labels into dataset.json"
            )
        return labels.cpu()

    def distinct(self, prompt_ids: Tensor) -> list[Metadata]:
        """Return the prompts of these ids, each once."""
        return list(dict.fromkeys(self.sequence[i] for i in prompt_ids.tolist()))


def rounds(by_tag: Mapping[str, Sequence[tuple[T, int]]], seed: int) -> list[T]:
    """Return the order of prompts, given those of each tag and how often each occurs."""
    return [item for turn in zip_longest(*(turns(*pair, seed) for pair in by_tag.items())) for item in turn if item]


def turns(tag: str, group: Sequence[tuple[T, int]], seed: int) -> Iterator[T]:
    order = torch.randperm(len(group), generator=keyed_generator(seed, "asking order", tag, index=0)).tolist()
    most = max(times for _, times in group)
    return chain.from_iterable([group[i][0] for i in order if group[i][1] > turn] for turn in range(most))


@validated
class ColorStatistics:
    """A PromptMetric of images (n, 3, height, width) that does not grade them; prompt id i is prompt i + 1 of the cache.

    Args:
        cache: of the encoded prompts.
    """

    def __init__(self, cache: PromptCache) -> None:
        self.index = cache.read_index()

    def identity(self) -> dict[str, Any]:
        return {"prompts": self.index.digest}

    def prompt_ids(self, indices: Tensor) -> Tensor:
        """Return the prompts in their order, from the first one again after the last."""
        return indices % (len(self.index.prompts) - 1)

    def conditions(self, prompt_ids: Tensor) -> Tensor:
        return prompt_ids + 1

    def prompts(self, prompt_ids: Tensor) -> list[str]:
        return [self.index.prompts[i + 1] for i in prompt_ids.tolist()]

    def ground_truth(self, prompt_ids: Tensor) -> None:
        """Return None: there are no real images."""

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        return []

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        pixels = quantise(x_0)
        x = dequantise(pixels)
        lowest, highest = ((x + 1) / 2).aminmax(dim=1)
        return {
            "pixel_mean": x.flatten(1).mean(1),
            "pixel_std": x.flatten(1).std(1),
            "saturation": ((highest - lowest) / highest.clamp_min(1e-6)).flatten(1).mean(1),
            "clipped": ((pixels == 0) | (pixels == 255)).float().flatten(1).mean(1),
        }

    def compute(self, features: Features) -> list[Measurement]:
        protocol = f"uint8, mean over images; prompts {self.index.digest[:8]}"
        return [Measurement(name, values.mean().item(), len(values), protocol) for name, values in features.items()]

    def reference_values(self) -> list[Measurement]:
        return []
