"""GenEval's numbers, from the verdicts on all samples of all prompts.

    score of a tag     share of its images that are correct
    overall            mean of the tags' scores, UNWEIGHTED: the one that is called GenEval
    images             share of all images that are correct
    prompts            share of the prompts of which any sample is correct

A prompt's samples share their prompt, so the interval of overall resamples PROMPTS, within their tags and with
replacement (intervals.bootstrap). It tells how far the number would move with other prompts of the same kinds
and other noise. A tag of one prompt adds nothing to its width. Incomplete sets are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgm.data.text.geneval.prompts import Metadata
from fgm.evaluation.geneval.completeness import require_complete
from fgm.evaluation.geneval.results import Result
from fgm.evaluation.intervals import Array, Interval, bootstrap
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement


@dataclass(frozen=True)
class Scores:
    """All in [0, 1].

    Attributes:
        interval: 95 % of overall.
        n: number of images.
    """

    overall: float
    interval: Interval
    tags: dict[str, float]
    images: float
    prompts: float
    n: int

    def measurement(self, protocol: str, nfe: int, weights: str, metric: str = "geneval") -> Measurement:
        """A row's entry; the tags' scores and the interval travel with it."""
        extra = {"ci95": self.interval, "images": self.images, "prompts": self.prompts}
        return Measurement(metric, self.overall, self.n, protocol, nfe, weights, extra | self.tags)


def summarise(results: Sequence[Result], prompts: Sequence[Metadata], per_prompt: int) -> Scores:
    """The scores of a complete set of results.

    Raises:
        UserError: a prompt or sample is missing, too many or there twice, or a result belongs to another prompt.
    """
    correct = correctness(results, prompts, per_prompt)
    shares = by_tag(correct.mean(1), prompts)
    tags = {tag: float(share.mean()) for tag, share in shares.items()}
    interval = bootstrap(list(shares.values()))
    any_right = float(correct.any(1).mean())
    return Scores(float(np.mean(list(tags.values()))), interval, tags, float(correct.mean()), any_right, correct.size)


def correctness(results: Sequence[Result], prompts: Sequence[Metadata], per_prompt: int) -> Array:
    """1 where right and 0 where wrong, (prompts, per_prompt)."""
    require_complete([result.sample for result in results], len(prompts), per_prompt, "results")
    correct = np.zeros((len(prompts), per_prompt))
    for result in results:
        asked, judged = prompts[result.sample[0]], result.metadata
        if judged != asked:
            raise UserError(f"{result.filename}: was judged as {judged.prompt!r}, but asked for {asked.prompt!r}")
        correct[result.sample] = result.correct
    return correct


def by_tag(values: Array, prompts: Sequence[Metadata]) -> dict[str, Array]:
    """One value per prompt, sorted into the tags, which keep the prompts' order."""
    tags = np.array([metadata.tag for metadata in prompts])
    return {tag: values[tags == tag] for tag in dict.fromkeys(tags.tolist())}
