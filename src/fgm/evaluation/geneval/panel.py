"""GenEval as a suite: its prompts are asked of a sampler in training and at its end, and judged where they arise.

The score is `geneval`, tag by tag as in evaluation/prompted.py. n = prompts x samples asks all of them, as the official
run does; the first n_in_training = 60 are ten of each tag. A score that is to be held against a published one is made by
`make export ARGS=format=geneval` and the official evaluator.
"""

from functools import cached_property
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from fgm.data import prompted
from fgm.data.pixels import quantise
from fgm.data.prompts import geneval_metadata
from fgm.data.text.geneval.prompts import Metadata, digest
from fgm.evaluation.geneval.detections import ColourClassifier, Detector
from fgm.evaluation.geneval.evaluate import GenEval
from fgm.evaluation.geneval.rules import OFFICIAL, GenEvalRules
from fgm.evaluation.prompt_score import PromptScore, rounds
from fgm.utils.errors import UserError
from fgm.utils.validation import validated


@validated
class GenEvalMetric(PromptScore):
    """Images (n, 3, h, w) of GenEval's prompts.

    Args:
        metadata: path of prompts/evaluation_metadata.jsonl in a GenEval checkout; grammar for prompts of our own, which
            are no published benchmark.
        detector: finds objects in images.
        colours: names the colours that the detector leaves open.
        data: encodes prompts as conditions; None where samples come from a folder.
        samples: of each prompt.
        seed: of the order of asking, and of our own prompts.
        rules: the official ones unless stated.

    Raises:
        UserError: the metadata cannot be read, or data has no prompts.
    """

    def __init__(
        self,
        metadata: str | None,
        detector: Detector,
        colours: ColourClassifier | None = None,
        data: Any = None,
        samples: PositiveInt = 4,
        seed: NonNegativeInt = 0,
        rules: GenEvalRules = OFFICIAL,
    ) -> None:
        self.words, self.detector = prompted(data), detector
        self.judging = GenEval(detector, colours, rules)
        by_tag: dict[str, list[tuple[Metadata, int]]] = {}
        for prompt in geneval_metadata(metadata or "none", seed):
            by_tag.setdefault(prompt.tag, []).append((prompt, samples))
        super().__init__("geneval", rounds(by_tag, seed))
        if data is not None and self.words is None:
            raise UserError(f"GenEval asks for prompts, and {type(data).__name__} has none: take another evaluator")

    @cached_property
    def tokens(self) -> Tensor:
        assert self.words is not None  # a folder's samples are not drawn
        return self.words.encode([metadata.prompt for metadata in self.asked])

    def conditions(self, prompt_ids: Tensor) -> Tensor:
        return self.tokens[prompt_ids]

    def ground_truth(self, prompt_ids: Tensor) -> None:
        """There are no real images of them."""

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        images = quantise(x_0).movedim(1, -1).cpu().numpy()
        pairs = zip(images, (self.asked[i] for i in prompt_ids.tolist()), strict=True)
        looked = [self.judging.look(self.detector.detect(x), asked, lambda x=x: x) for x, asked in pairs]
        return [(verdict.correct, verdict.reason) for _, verdict in looked]

    def protocol(self, prompt_ids: Tensor) -> str:
        whole = "" if len(prompt_ids) == len(self.asked) else f" of {len(set(self.asked))}"
        return self.judging.protocol(self.distinct(prompt_ids)) + whole

    def identity(self) -> dict[str, Any]:
        return {"protocol": self.protocol(self.prompt_ids(torch.arange(len(self.asked)))), "asked": digest(self.asked)}

    def reference_values(self) -> list[Any]:
        return []
