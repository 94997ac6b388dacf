"""ShapeEval's numbers: GenEval's rules over renders of shapes.

    shapeeval, shapeeval_<tag>         see fgm.evaluation.prompt_score
    shapeeval_seen, shapeeval_unseen   mean over the BINDING tags of the share correct, among prompts of pairs of color
                                       and shape that training shows, and among prompts of held-out pairs
    parse_rate, stray, crispness       of the pixels, see detector
    class_tv, colour_tv, count_tv      total variation between the histograms over all objects of all images, of their
                                       shapes, their colors and their number in an image, and exact priors: the prompts
                                       name shapes and numbers; a color that they leave open is uniform over those that
                                       training shows of the shape

The histograms reveal a sampler that leaves out a class, a color or objects, even where no single prompt judges it.

A tag has few prompts (four of single_object, twelve of two_object), so each is used several times: every tag gets the
same number of images, shared by its prompts as evenly as possible. Prompts of held-out pairs occur in colors and
color_attr, at their share of all prompts.

One threshold differs from GenEval: counting keeps objects of a score above 0.7 instead of 0.9. The score is no confidence
here but a soft IoU, which any blur lowers: of true scenes at 32 pixels, blurred by a Gaussian of 1.5 pixels, 0.90 count
right above 0.7 and 0.30 above 0.9. 0.7 is what the detector requires of any object.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn.functional import one_hot, pad

from fgm.data.geneval import COLORS, TAGS, Metadata, digest
from fgm.data.shapes.captions import COUNTING, EASY, SEEN_COLORS, SHAPES, Captions, all_captions, binds_unseen
from fgm.data.shapes.scenes import OBJECTS, canvas_of, draw_scenes_of, render, shapes_of
from fgm.evaluation import Features
from fgm.evaluation.comparison import total_variation
from fgm.evaluation.geneval.rules import Detection, GenEvalRules, Grade, grade
from fgm.evaluation.prompt_score import PromptScore, rounds
from fgm.evaluation.shapes.detector import ACCEPT, Reading, ShapeDetector, legibility, legibility_features
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

RULES = GenEvalRules(counting_threshold=ACCEPT)
BINDING = ("colors", "color_attr")  # tags whose prompts state every color
COUNTS = OBJECTS + 2  # 0 to OBJECTS, and more


@validated
class ShapeEvalSuite(PromptScore):
    """ShapeEval of images (n, 3, size, size).

    Args:
        size: pixels of a side.
        shapes: number of shapes; 6 is hard mode.
        prompts_per_tag: maximum of a tag.
        images_per_tag: images after which the prompts repeat; n = 6 images_per_tag uses all of them.
        seed: of the choice of prompts, their order, and the scenes of the ground truth.
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
        chosen = choose_captions(prompts_per_tag, images_per_tag, seed, shapes)
        by_tag = {tag: share(captions.metadata(), images_per_tag) for tag, captions in chosen.items()}
        super().__init__("shapeeval", rounds(by_tag, seed))
        columns = zip(*(captions.columns() for captions in chosen.values()), strict=True)
        distinct = Captions(*(torch.cat(column) for column in columns))
        row = {prompt: i for i, prompt in enumerate(distinct.prompts())}
        self.captions = distinct[torch.tensor([row[metadata.prompt] for metadata in self.sequence])]
        self.unseen = torch.tensor([binds_unseen(metadata) for metadata in self.sequence])

    def identity(self) -> dict[str, Any]:
        protocols = {"rules": RULES.protocol, "detector": self.detector.protocol}
        return {"size": self.size, **protocols, "prompts": digest(self.sequence)}

    def conditions(self, prompt_ids: Tensor) -> Tensor:
        """Return token ids (n, LENGTH)."""
        return self.captions[prompt_ids].tokens()

    def ground_truth(self, prompt_ids: Tensor) -> Tensor:
        """Render scenes that satisfy the prompts, (n, 3, size, size)."""
        generator = keyed_generator(self.seed, "ShapeEval truth", index=0)
        return render(draw_scenes_of(self.captions[prompt_ids], generator, self.canvas), self.size)

    def grades(self, x_0: Tensor, prompt_ids: Tensor) -> list[tuple[bool, str]]:
        return [(g.correct, g.reason) for g in self.grades_of(self.detector.read(x_0), prompt_ids)]

    def grades_of(self, readings: Sequence[Reading], prompt_ids: Tensor) -> list[Grade]:
        pairs = zip(prompt_ids.tolist(), readings, strict=True)
        return [grade(self.sequence[i], reading.detections, RULES) for i, reading in pairs]

    def features(self, x_0: Tensor, labels: Tensor | None) -> Features:
        return self.features_of(self.detector.read(x_0), self.require_prompt_ids(labels))

    def features_of(self, readings: Sequence[Reading], prompt_ids: Tensor) -> Features:
        correct = torch.tensor([grade.correct for grade in self.grades_of(readings, prompt_ids)])
        counts = histograms([reading.detections for reading in readings])
        return {"prompt_id": prompt_ids, "correct": correct} | counts | legibility_features(readings)

    def compute(self, features: Features) -> list[Measurement]:
        prompt_ids = features["prompt_id"]
        protocol, n = self.protocol(prompt_ids), len(prompt_ids)
        distances = histogram_distances(features, self.captions[prompt_ids])
        return [
            *super().compute(features),
            *self.binding_scores(features["correct"], prompt_ids),
            *(Measurement(name, value, n, protocol) for name, value in distances.items()),
            *legibility(features, f"{self.detector.protocol}; {self.size} pixels"),
        ]

    def binding_scores(self, correct: Tensor, prompt_ids: Tensor) -> list[Measurement]:
        """Return the scores of prompts with and without held-out pairs, if both binding tags have such prompts."""
        tags, unseen = [self.sequence[i].tag for i in prompt_ids.tolist()], self.unseen[prompt_ids]
        of_tag = [torch.tensor([each == tag for each in tags]) for tag in BINDING]
        measured = []
        for name, kind in {f"{self.metric}_seen": ~unseen, f"{self.metric}_unseen": unseen}.items():
            cells = [correct[mask & kind].double() for mask in of_tag]
            if all(map(len, cells)):
                value, n = torch.stack([cell.mean() for cell in cells]).mean().item(), sum(map(len, cells))
                measured.append(Measurement(name, value, n, self.protocol(prompt_ids)))
        return measured

    def protocol(self, prompt_ids: Tensor) -> str:
        prompts = self.distinct(prompt_ids)
        parts = [RULES.protocol, self.detector.protocol, f"{self.size} pixels", f"{len(prompts)} prompts"]
        return f"{'; '.join(parts)}, {digest(prompts)}"

    def reference_values(self) -> list[Measurement]:
        """Measure the ground truth, which every sampler may reach, and the same images against shuffled prompts."""
        order = torch.arange(len(self.sequence))
        readings = self.detector.read(self.ground_truth(order))
        shuffled = torch.randperm(len(order), generator=keyed_generator(self.seed, "ShapeEval shuffle", index=0))
        ceiling, floor = (self.compute(self.features_of(readings, prompt_ids)) for prompt_ids in (order, shuffled))
        floor = [m for m in floor if self.metric in m.metric]  # the others do not depend on the prompts' order
        named = {"ceiling: ground truth": ceiling, "floor: shuffled captions": floor}
        return [replace(m, protocol=f"{name}; {m.protocol}") for name, measured in named.items() for m in measured]


def choose_captions(prompts_per_tag: int, images_per_tag: int, seed: int, shapes: int) -> dict[str, Captions]:
    """Choose up to prompts_per_tag captions of every tag, by the seed."""
    if not 1 <= prompts_per_tag <= images_per_tag:
        raise UserError(
            f"images_per_tag = {images_per_tag} is less than prompts_per_tag = {prompts_per_tag}: every prompt needs an "
            "image"
        )
    chosen = {}
    for tag in TAGS:
        captions = all_captions(tag, shapes)
        order = torch.randperm(len(captions), generator=keyed_generator(seed, "questions", tag, index=0))
        chosen[tag] = captions[order[:prompts_per_tag].sort().values]
    return chosen


def share(prompts: Sequence[Metadata], images: int) -> list[tuple[Metadata, int]]:
    """Share images among prompts, in numbers that differ by one at most."""
    least, more = divmod(images, len(prompts))
    return [(prompt, least + (i < more)) for i, prompt in enumerate(prompts)]


def histograms(found: Sequence[Sequence[Detection]]) -> Features:
    """Return, for each image, its objects by class (n, 6) and by color (n, 10), and their number (n,)."""

    def tally(items: list[list[int]], kinds: int) -> Tensor:
        return torch.stack([torch.tensor(row, dtype=torch.int64).bincount(minlength=kinds) for row in items])

    classes = tally([[SHAPES.index(d.cls) for d in detections] for detections in found], len(SHAPES))
    colors = tally([[COLORS.index(str(d.color)) for d in detections] for detections in found], len(COLORS))
    return {"classes": classes, "colors": colors, "objects": torch.tensor([len(detections) for detections in found])}


def histogram_distances(features: Features, captions: Captions) -> dict[str, float]:
    """Compare n images' histograms with those expected of n captions; without any object, class and color have 1."""
    counts = features["objects"].clamp_max(COUNTS - 1).bincount(minlength=COUNTS)
    actual = {"class_tv": features["classes"].sum(0), "colour_tv": features["colors"].sum(0), "count_tv": counts}
    expected = expected_histograms(captions)
    return {name: total_variation(histogram, expected[name]) for name, histogram in actual.items()}


def expected_histograms(captions: Captions) -> dict[str, Tensor]:
    """Return the expected histograms of scenes of these captions, not normalized."""
    shape = shapes_of(captions)
    present = shape >= 0
    stated = pad(captions.color, (0, OBJECTS - 2), value=-1)
    stated = torch.where((captions.tag == COUNTING)[:, None], captions.color[:, :1], stated)  # (n, OBJECTS)
    uniform = one_hot(SEEN_COLORS, len(COLORS)).double().mean(1)[shape.clamp_min(0)]
    p_color = torch.where(stated[..., None] >= 0, one_hot(stated.clamp_min(0), len(COLORS)).double(), uniform)
    return {
        "class_tv": shape[present].bincount(minlength=len(SHAPES)),
        "colour_tv": p_color[present].sum(0),
        "count_tv": present.sum(1).bincount(minlength=COUNTS),
    }
