"""ShapeEval: does the image show what the prompt names? GenEval's rules over renders of shapes, with no weights.

    prompts        shape_prompts     what is asked, tag by tag
    detections     shape_detector    what is seen
    verdict        geneval.rules     what is right

    shapeeval, shapeeval_<tag>         see prompted
    shapeeval_seen, shapeeval_unseen   mean over the BINDING tags of the share right among prompts of bindings that
                                       training shows, and among prompts that bind a held-out pair of colour and shape
    parse_rate, stray, crispness       of the pixels, see shape_detector
    class_tv, colour_tv, count_tv      of the objects, see shape_prior

One threshold departs from GenEval: counting keeps objects of score above 0.7 where GenEval asks for 0.9. A score here
is no confidence but a soft IoU, which blur alone lowers: of true scenes at 32 pixels, blurred by a Gaussian of 1.5
pixels, 0.90 count right above 0.7 and 0.30 above 0.9. 0.7 is what the detector asks of any object.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fgm.data.shapes.render import render
from fgm.data.shapes.scenes import canvas_of, fill
from fgm.data.text.geneval.prompts import digest, parse_metadata
from fgm.data.text.shapes.metadata import binds_unseen, parse
from fgm.data.text.shapes.vocabulary import EASY
from fgm.evaluation import Features
from fgm.evaluation.geneval.rules import GenEvalRules, Verdict, judge
from fgm.evaluation.prompt_score import PromptScore, rounds
from fgm.evaluation.shape_detector import ACCEPT, Reading, ShapeDetector, legibility, legible
from fgm.evaluation.shape_prior import histogram_distances, histograms
from fgm.evaluation.shape_prompts import VOCABULARY, questions
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

RULES = GenEvalRules(counting_threshold=ACCEPT)
BINDING = ("colors", "color_attr")  # tags whose prompts state every colour


@validated
class ShapeEvalMetric(PromptScore):
    """Images (n, 3, size, size) of the prompts that the suite asks for.

    Args:
        size: pixels of a side.
        shapes: how many of the vocabulary's; 6 is hard mode.
        prompts_per_tag: most of a tag.
        images_per_tag: images after which the prompts repeat; n = 6 images_per_tag asks all of them.
        seed: of the choice of prompts, their order, and the scenes of the truth.
    """

    def __init__(
        self,
        size: Literal[32, 64] = 32,
        shapes: Annotated[int, Field(ge=2, le=6)] = EASY,
        prompts_per_tag: PositiveInt = 100,
        images_per_tag: PositiveInt = 400,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.size, self.seed, self.detector, self.canvas = size, seed, ShapeDetector(shapes), canvas_of(size)
        lines = rounds(questions(prompts_per_tag, images_per_tag, seed, shapes), seed)
        self.lines, self.unseen = parse(lines), torch.tensor([binds_unseen(line) for line in lines])
        super().__init__("shapeeval", [parse_metadata(json.dumps(line), line["prompt"], VOCABULARY) for line in lines])

    def identity(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "rules": RULES.protocol,
            "detector": self.detector.protocol,
            "asked": digest(self.asked),
        }

    def conditions(self, prompt_ids: Tensor) -> Tensor:
        """Token ids (n, LENGTH)."""
        return self.lines[prompt_ids].tokens()

    def ground_truth(self, prompt_ids: Tensor) -> Tensor:
        """Renders of scenes that show what is asked, (n, 3, size, size)."""
        scenes = fill(self.lines[prompt_ids], keyed_generator(self.seed, "ShapeEval truth", index=0), self.canvas)
        return render(scenes, self.size)

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        return [(v.correct, v.reason) for v in self.verdicts_of(self.detector.read(x_0), prompt_ids)]

    def verdicts_of(self, readings: Sequence[Reading], prompt_ids: Tensor) -> list[Verdict]:
        pairs = zip(prompt_ids.tolist(), readings, strict=True)
        return [judge(self.asked[question], reading.detections, RULES) for question, reading in pairs]

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        return self.features_of(self.detector.read(x_0), self.answered(labels))

    def features_of(self, readings: Sequence[Reading], prompt_ids: Tensor) -> Features:
        correct = torch.tensor([verdict.correct for verdict in self.verdicts_of(readings, prompt_ids)])
        seen = histograms([reading.detections for reading in readings])
        return {"prompt_id": prompt_ids, "correct": correct} | seen | legible(readings)

    def compute(self, features: Features) -> list[Measurement]:
        prompt_ids = features["prompt_id"]
        measured = super().compute(features) + self.bindings(features["correct"], prompt_ids)
        distances = histogram_distances(features, self.lines[prompt_ids]).items()
        measured += [Measurement(name, value, len(prompt_ids), self.protocol(prompt_ids)) for name, value in distances]
        return measured + legibility(features, f"{self.detector.protocol}; {self.size} pixels")

    def bindings(self, correct: Tensor, prompt_ids: Tensor) -> list[Measurement]:
        """Right answers with and without held-out pairs; left out where either binding tag was not asked so."""
        tags, unseen = [self.asked[i].tag for i in prompt_ids.tolist()], self.unseen[prompt_ids]
        of_tag = [torch.tensor([found == tag for found in tags]) for tag in BINDING]
        kinds, measured = {f"{self.metric}_seen": ~unseen, f"{self.metric}_unseen": unseen}, []
        for name, kind in kinds.items():
            cells = [correct[mask & kind].double() for mask in of_tag]
            if all(map(len, cells)):
                value, n = torch.stack([cell.mean() for cell in cells]).mean().item(), sum(map(len, cells))
                measured.append(Measurement(name, value, n, self.protocol(prompt_ids)))
        return measured

    def protocol(self, prompt_ids: Tensor) -> str:
        prompts = self.distinct(prompt_ids)
        told = [RULES.protocol, self.detector.protocol, f"{self.size} pixels", f"{len(prompts)} prompts"]
        return f"{'; '.join(told)}, {digest(prompts)}"

    def reference_values(self) -> list[Measurement]:
        """The truth, which every sampler may reach, and the same images judged by other images' prompts."""
        order = torch.arange(len(self.asked))
        readings = self.detector.read(self.ground_truth(order))
        shuffled = torch.randperm(len(order), generator=keyed_generator(self.seed, "ShapeEval shuffle", index=0))
        best, least = (self.compute(self.features_of(readings, prompt_ids)) for prompt_ids in (order, shuffled))
        least = [m for m in least if self.metric in m.metric]  # the rest is the same of both
        found = {"ceiling: ground truth": best, "floor: shuffled captions": least}
        return [replace(m, protocol=f"{name}; {m.protocol}") for name, measured in found.items() for m in measured]
