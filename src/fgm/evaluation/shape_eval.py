"""ShapeEval: does the picture show what the caption names? GenEval's rules over renders of shapes, with no weights.

    captions       shape_prompts     what is asked, tag by tag
    detections     shape_detector    what is seen
    verdict        geneval.rules     what is right

Image i is of tag i modulo six, and walks through the tag's captions in a fixed random order. The first n images
are thus balanced over the tags to within one, and over a tag's captions to within one, whatever n is: during training
the same short beginning is asked again and again, at the end all of it; beyond the end it starts anew.

    shapeeval, shapeeval_*           verdicts in the mean, see shape_scores
    parse_rate, stray, crispness     of the pixels, see shape_detector
    class_tv, colour_tv, count_tv    of the objects, see shape_prior

One threshold departs from GenEval: counting keeps objects of score above 0.7 where GenEval asks for 0.9. A score here
is no confidence but a soft IoU, which blur alone lowers: of true scenes at 32 pixels, blurred by a Gaussian of 1.5
pixels, 0.90 count right above 0.7 and 0.30 above 0.9. 0.7 is what the detector asks of any object.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fgm.data.shapes.grammar import TAGS
from fgm.data.shapes.metadata import Metadata as Line
from fgm.data.shapes.metadata import binds_unseen, parse
from fgm.data.shapes.render import render
from fgm.data.shapes.scenes import canvas_of, fill
from fgm.data.shapes.vocabulary import EASY, SHAPE_NAMES
from fgm.evaluation.geneval.prompts import digest, parse_metadata
from fgm.evaluation.geneval.rules import GenEvalRules, Verdict, judge
from fgm.evaluation.geneval.vocabulary import Vocabulary
from fgm.evaluation.shape_detector import Reading, ShapeDetector, legibility
from fgm.evaluation.shape_prior import histogram_distances
from fgm.evaluation.shape_prompts import Question, questions
from fgm.evaluation.shape_scores import scores
from fgm.records import Measurement
from fgm.streams import stream

WORDS = Vocabulary(classes=tuple(SHAPE_NAMES))
RULES = GenEvalRules(counting_threshold=0.7)


class ShapeEvalPanel:
    """Images (n, 3, size, size) of the captions that the panel asks for.

    Args:
        size: pixels of a side.
        shapes: how many of the vocabulary's; 6 is hard mode.
        prompts_per_tag: most captions of a tag.
        images_per_tag: images after which the questions repeat; n = 6 images_per_tag asks all of them.
        seed: of the choice of captions, their order, and the scenes of the truth.
    """

    def __init__(
        self,
        size: Literal[32, 64] = 32,
        shapes: Annotated[int, "[2, 6]"] = EASY,
        prompts_per_tag: Annotated[int, "[1, inf)"] = 100,
        images_per_tag: Annotated[int, "[1, inf)"] = 400,
        seed: Annotated[int, "[0, inf)"] = 0,
    ) -> None:
        self.size, self.seed, self.detector, self.canvas = size, seed, ShapeDetector(shapes), canvas_of(size)
        lines = asking_order(questions(prompts_per_tag, images_per_tag, seed, shapes), seed)
        self.lines = parse(lines)
        self.asked = [parse_metadata(json.dumps(line), line["prompt"], WORDS) for line in lines]
        self.unseen = np.array([binds_unseen(line) for line in lines])

    def places(self, indices: Tensor) -> Tensor:
        """Of the questions that samples (n,) are asked."""
        return indices.cpu() % len(self.asked)

    def conditions(self, indices: Tensor) -> Tensor:
        """Token ids (n, LENGTH)."""
        return self.lines[self.places(indices)].tokens()

    def captions(self, indices: Tensor) -> list[str]:
        return self.lines[self.places(indices)].prompts()

    def truth(self, indices: Tensor) -> Tensor:
        """Renders of scenes that show the captions, (n, 3, size, size)."""
        scenes = fill(self.lines[self.places(indices)], stream(self.seed, "ShapeEval truth", index=0), self.canvas)
        return render(scenes, self.size)

    def verdicts(self, x_0: Tensor) -> list[tuple[bool, str]]:
        found = self.judge(self.detector.read(x_0), self.places(torch.arange(len(x_0))))
        return [(verdict.correct, verdict.reason) for verdict in found]

    def judge(self, readings: Sequence[Reading], places: Tensor) -> list[Verdict]:
        pairs = zip(places.tolist(), readings, strict=True)
        return [judge(self.asked[place], reading.detections, RULES) for place, reading in pairs]

    def measure(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        indices = torch.arange(len(x_0))
        if labels is None or not torch.equal(labels.cpu(), self.conditions(indices)):
            raise ValueError("these images do not answer ShapeEval's captions: draw them with the panel's conditions")
        return self.report(self.detector.read(x_0), self.places(indices))

    def report(self, readings: Sequence[Reading], places: Tensor) -> list[Measurement]:
        """All metrics of pictures, judged by the questions at these places."""
        correct = np.array([verdict.correct for verdict in self.judge(readings, places)], dtype=np.float64)
        values = scores(correct, [self.asked[i] for i in places.tolist()], self.unseen[places.numpy()])
        values |= histogram_distances([reading.detections for reading in readings], self.lines[places])
        measured = [Measurement(metric, *found, self.protocol(places)) for metric, found in values.items()]
        return measured + legibility(readings, f"{self.detector.protocol}; {self.size} pixels")

    def protocol(self, places: Tensor) -> str:
        asked = list(dict.fromkeys(self.asked[i] for i in places.tolist()))
        return f"{RULES.protocol}; {self.detector.protocol}; {self.size} pixels; {len(asked)} prompts, {digest(asked)}"

    def bounds(self) -> list[Measurement]:
        """The truth, which every sampler may reach, and the same pictures judged by other pictures' questions."""
        places = torch.arange(len(self.asked))
        readings = self.detector.read(self.truth(places))
        shuffled = torch.randperm(len(places), generator=stream(self.seed, "ShapeEval shuffle", index=0))
        sets = {"ceiling: ground truth": places, "floor: shuffled captions": shuffled}
        found = {name: self.report(readings, order) for name, order in sets.items()}
        found["floor: shuffled captions"] = [m for m in found["floor: shuffled captions"] if "shapeeval" in m.metric]
        return [replace(m, protocol=f"{name}; {m.protocol}") for name, measured in found.items() for m in measured]


def asking_order(asked: Sequence[Question], seed: int) -> list[Line]:
    """The metadata of every image, tag after tag, and within a tag round after round over its shuffled captions."""
    by_tag = []
    for tag in TAGS:
        group = [question for question in asked if question.metadata["tag"] == tag]
        order = torch.randperm(len(group), generator=stream(seed, "asking order", tag, index=0)).tolist()
        rounds = range(max(question.samples for question in group))
        by_tag.append([group[i].metadata for r in rounds for i in order if group[i].samples > r])
    return [line for row in zip(*by_tag, strict=True) for line in row]
