"""GenEval of images or detections: a torchmetrics.Metric, and a suite of fgm's own evaluations; see prompt_score."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fgm.data import Data
from fgm.data.geneval import TAGS, Metadata, digest, has_official_counts, read_prompts
from fgm.data.pixels import quantise
from fgm.evaluation.geneval.rules import (
    OFFICIAL,
    ColorClassifier,
    Detection,
    Detections,
    Detector,
    GenEvalRules,
    Grade,
    Pixels,
    grade_selected,
    select,
    visible,
)
from fgm.evaluation.prompt_score import PromptScore, rounds, summarize
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement
from fgm.utils.validation import validated


class GenEval(Metric):
    """GenEval as a torchmetrics.Metric; states are synchronized between processes.

        metric = GenEval(Mask2FormerDetector("mask2former"), CLIPColors("clip"))
        metric.update(images, prompts)        # images (n, 3, h, w), and the Metadata of each one's prompt
        metric.compute()                      # {"overall": ..., "images": ..., "prompts": ..., "single_object": ..., ...}

    Images are uint8, or floats in [-1, 1]. A list of detections for each image can take their place. Scores of tags that
    no prompt had are absent.

    Args:
        detector: finds objects; not needed for lists of detections.
        colors: names the colors that the detector leaves open; not needed if no prompt has a color.
        rules: the official ones unless given.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    tags: list[Tensor]
    prompt_ids: list[Tensor]
    correct: list[Tensor]

    def __init__(
        self,
        detector: Detector | None = None,
        colors: ColorClassifier | None = None,
        rules: GenEvalRules = OFFICIAL,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.detector, self.colors, self.rules = detector, colors, rules
        for state in ("tags", "prompt_ids", "correct"):  # int64, one number for each image
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor | Sequence[Sequence[Detection]], prompts: Sequence[Metadata]) -> None:
        """Grade images, or lists of detections, that belong to these prompts.

        Raises:
            UserError: a color is needed, and neither the detections nor a color classifier give one.
        """
        if isinstance(images, Tensor):
            graded = [self.grade(self.detect(x), m, x) for x, m in zip(to_pixels(images), prompts, strict=True)]
        else:
            graded = [self.grade(detections, m) for detections, m in zip(images, prompts, strict=True)]
        correct = [grade.correct for _, grade in graded]
        numbers = [TAGS.index(metadata.tag) for metadata in prompts], [prompt_id(metadata) for metadata in prompts]
        for state, values in zip((self.tags, self.prompt_ids, self.correct), (*numbers, correct), strict=True):
            state.append(torch.tensor(values, dtype=torch.int64, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return overall, images, prompts and the score of each tag, in [0, 1]."""
        tags, prompts, correct = (dim_zero_cat(s).tolist() for s in (self.tags, self.prompt_ids, self.correct))
        scores = summarize([TAGS[tag] for tag in tags], prompts, correct)
        values = {"overall": scores.overall, "images": scores.images, "prompts": scores.prompts} | scores.tags
        return {name: torch.tensor(value, device=self.device) for name, value in values.items()}

    def detect(self, image: Pixels) -> list[Detection]:
        if self.detector is None:
            raise UserError("GenEval has no detector: give one, or lists of detections in place of images")
        return self.detector.detect(image)

    def grade(
        self, detections: Sequence[Detection], metadata: Metadata, image: Pixels | Callable[[], Pixels] | None = None
    ) -> tuple[Detections, Grade]:
        """Return the detections that count and the grade of one image.

        Only boxes that a clause with a color looks at are shown to the color classifier, and only if the detector did
        not return their colors; an image that is given as a function is not read otherwise.
        """
        selected = select(detections, metadata.tag, self.rules)
        colored = (d for clause in metadata.include if clause.color for d in visible(clause, selected))
        unknown = list(dict.fromkeys(d for d in colored if d.color is None))
        if unknown and self.colors is not None and image is not None:
            names = self.colors.classify(image() if callable(image) else image, unknown)
            color_of = dict(zip(unknown, names, strict=True))
            selected = {
                cls: [replace(d, color=color_of.get(d, d.color)) for d in found] for cls, found in selected.items()
            }
        return selected, grade_selected(metadata, selected, self.rules)

    def protocol(self, prompts: Sequence[Metadata]) -> str:
        """Return all that defines a score except for the sampler: rules, networks, prompts."""
        networks = [part.protocol for part in (self.detector, self.colors) if part is not None]
        counts = " in GenEval's counts" if has_official_counts(prompts) else ""
        return f"{'; '.join([self.rules.protocol, *networks, f'{len(prompts)} prompts{counts}'])}, {digest(prompts)}"


def to_pixels(images: Tensor) -> list[Pixels]:
    """Turn images (n, 3, h, w), uint8 or in [-1, 1], into n arrays uint8 (h, w, 3)."""
    return list(quantise(images).movedim(1, -1).cpu().numpy())


def prompt_id(metadata: Metadata) -> int:
    """Return a number of 63 bits that is the same in all processes."""
    return int.from_bytes(sha256(metadata.line().encode()).digest()[:8]) >> 1


@validated
class GenEvalSuite(PromptScore):
    """GenEval of a sampler, in training and at its end: `geneval` and a score for each tag, see prompt_score.

    n = prompts x samples uses every prompt `samples` times, as the official run does; the first n_in_training = 60 are
    ten of each tag. For a number to compare with published ones, export images (`make export ARGS=format=geneval`) and
    run the official evaluator.

    Args:
        metadata: path of prompts/evaluation_metadata.jsonl in a GenEval checkout.
        detector: finds objects in images.
        colors: names the colors that the detector leaves open.
        data: encodes prompts as conditions; None for samples from a folder.
        samples: of each prompt.
        seed: of the order of the prompts.
        rules: the official ones unless given.

    Raises:
        UserError: the metadata cannot be read, or data cannot encode its prompts.
    """

    def __init__(
        self,
        metadata: str | None,
        detector: Detector,
        colors: ColorClassifier | None = None,
        data: Data | None = None,
        samples: PositiveInt = 4,
        seed: NonNegativeInt = 0,
        rules: GenEvalRules = OFFICIAL,
    ) -> None:
        self.geneval = GenEval(detector, colors, rules)
        by_tag: dict[str, list[tuple[Metadata, int]]] = {}
        if metadata is None:
            raise UserError(
                "evaluation.suite.metadata is missing: give prompts/evaluation_metadata.jsonl of a checkout of "
                "github.com/djghosh13/geneval"
            )
        for prompt in read_prompts(Path(metadata)):
            by_tag.setdefault(prompt.tag, []).append((prompt, samples))
        super().__init__("geneval", rounds(by_tag, seed))
        self.tokens: Tensor | None = None
        if data is not None:
            if data.prompts is None:
                raise UserError(
                    f"GenEval needs data with prompts, and {type(data).__name__} has none: use another evaluator"
                )
            self.tokens = data.prompts.encode([metadata.prompt for metadata in self.sequence])

    def conditions(self, prompt_ids: Tensor) -> Tensor:
        assert self.tokens is not None  # samples from a folder need no conditions
        return self.tokens[prompt_ids]

    def ground_truth(self, prompt_ids: Tensor) -> None:
        """Return None: there are no real images of GenEval's prompts."""

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        prompts = [self.sequence[i] for i in prompt_ids.tolist()]
        pairs = zip(to_pixels(x_0), prompts, strict=True)
        grades = [self.geneval.grade(self.geneval.detect(image), prompt, image)[1] for image, prompt in pairs]
        return [(grade.correct, grade.reason) for grade in grades]

    def protocol(self, prompt_ids: Tensor) -> str:
        subset = "" if len(prompt_ids) == len(self.sequence) else f" of {len(set(self.sequence))}"
        return self.geneval.protocol(self.distinct(prompt_ids)) + subset

    def identity(self) -> dict[str, Any]:
        return {"protocol": self.protocol(torch.arange(len(self.sequence))), "prompts": digest(self.sequence)}

    def reference_values(self) -> list[Measurement]:
        return []
