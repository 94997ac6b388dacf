"""Metrics of prompts: every sample answers a question, and a metric is the share of right answers, tag by tag.

    <metric>          UNWEIGHTED mean of the tags' scores, with a 95 % interval: bootstrap over prompts, since the
                      samples of one prompt are not independent
    <metric>_<tag>    share of the tag's samples that are right

Questions are asked in rounds: one of each tag, then the next, and within a tag round after round over its prompts in a
fixed random order. However many samples are drawn, they are balanced over the tags, as far as these reach, and over a
tag's prompts to within one: during training the same short beginning is asked again and again, at the end all of it.
Beyond the end the prompts start anew.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgm.data.geneval import Metadata
from fgm.evaluation import Features
from fgm.evaluation.intervals import Array, bootstrap
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement

T = TypeVar("T")


class PromptScore:
    """What all of them share; a question is a place in `asked`.

    Args:
        metric: name of the score.
        asked: one prompt for each sample, in the order of asking.
    """

    def __init__(self, metric: str, asked: Sequence[Metadata]) -> None:
        self.metric, self.asked = metric, list(asked)

    def prompt_ids(self, indices: Tensor) -> Tensor:
        return indices.cpu() % len(self.asked)

    def prompts(self, prompt_ids: Tensor) -> list[str]:
        return [self.asked[i].prompt for i in prompt_ids.tolist()]

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        raise NotImplementedError

    def protocol(self, prompt_ids: Tensor) -> str:
        """All that a score of these prompts depends on but the samples."""
        raise NotImplementedError

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        prompt_ids = self.answered(labels)
        return {"prompt_id": prompt_ids, "correct": torch.tensor([v for v, _ in self.grades(x_0, prompt_ids)])}

    def compute(self, features: Features) -> list[Measurement]:
        asked = [self.asked[i] for i in features["prompt_id"].tolist()]
        return tag_scores(
            self.metric, features["correct"].double().numpy(), asked, self.protocol(features["prompt_id"])
        )

    def answered(self, labels: Tensor | None) -> Tensor:
        """
        Raises:
            UserError: nobody says which prompts the samples answer.
        """
        if labels is None or (len(labels) and int(labels.max()) >= len(self.asked)):
            raise UserError(
                f"{self.metric} needs samples of its own prompts: draw them by make eval, or export them by make "
                "export ARGS=format=png, which writes their numbers as labels into dataset.json"
            )
        return labels.cpu()

    def distinct(self, prompt_ids: Tensor) -> list[Metadata]:
        """The prompts of these ids, each once."""
        return list(dict.fromkeys(self.asked[i] for i in prompt_ids.tolist()))


def rounds(by_tag: Mapping[str, Sequence[tuple[T, int]]], seed: int) -> list[T]:
    """The order of asking: of each tag (question, how many times)."""
    return [item for turn in zip_longest(*(turns(*pair, seed) for pair in by_tag.items())) for item in turn if item]


def turns(tag: str, group: Sequence[tuple[T, int]], seed: int) -> Iterator[T]:
    order = torch.randperm(len(group), generator=keyed_generator(seed, "asking order", tag, index=0)).tolist()
    most = max(times for _, times in group)
    return chain.from_iterable([group[i][0] for i in order if group[i][1] > turn] for turn in range(most))


def tag_scores(metric: str, correct: Array, asked: Sequence[Metadata], protocol: str) -> list[Measurement]:
    """Of samples (n,): whether each is right, and what was asked. What nothing was asked of is left out."""
    tags, prompts = (np.array([getattr(m, name) for m in asked]) for name in ("tag", "prompt"))
    masks = {str(tag): tags == tag for tag in dict.fromkeys(tags.tolist())}
    parts = [
        Measurement(f"{metric}_{tag}", float(correct[mask].mean()), int(mask.sum()), protocol)
        for tag, mask in masks.items()
    ]
    shares = [prompt_shares(correct[mask], prompts[mask]) for mask in masks.values()]
    overall = float(np.mean([part.value for part in parts]))
    return [Measurement(metric, overall, len(correct), protocol, extra={"ci95": bootstrap(shares)}), *parts]


def prompt_shares(correct: Array, prompts: NDArray[np.str_]) -> Array:
    """Share right of each prompt's samples."""
    _, prompt = np.unique(prompts, return_inverse=True)
    return np.bincount(prompt, correct) / np.bincount(prompt)
