"""The rules of GenEval (Ghosh et al., arXiv 2310.11513) as djghosh13/geneval at af4902f applies them, quirks included.

Selection, per class:  boxes of score > threshold, strictly, 0.3 or for the tag "counting" 0.9; of those the max_objects
most confident; of those, if max_overlap < 1, none whose IoU with a more confident selected box reaches max_overlap.

Inclusion:  a clause looks only at the `count` most confident boxes of its class. Color and position are judged on
exactly those: a correct object that ranks second is ignored, and two clauses of one class look at the same boxes. Extra
objects do no harm, except for exclude: an image is wrong if it has as many boxes as exclude counts, or more.

Position of box A relative to box B, with centers c and sizes s, per axis and then jointly:

    d = c_A - c_B        r = sign(d) max(|d| - position_threshold (s_A + s_B), 0)        e = r / |d|_2

A is left of B if e_x < -1/2, right of it if e_x > 1/2, above it if e_y < -1/2, below it if e_y > 1/2, and nothing if
|r| < 1e-3 on both axes. e is divided by the norm of the UNSHRUNK offset: near boxes may have no relation, and diagonal
neighbors two. The relation must hold from every object of the clause to every object of the earlier clause.

All clauses must hold; each reports one failure at most, of count before color before position, in the words of the
official results.jsonl, so that the files of two evaluators can be compared. Ties of score keep the detector's order.

Boxes are (x_0, y_0, x_1, y_1) in pixels, x to the right and y DOWN, without the last column and row.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveInt

from fgm.data.geneval import COLORS, COUNTING, Clause, Metadata
from fgm.utils.errors import UserError
from fgm.utils.validation import validated

Pixels = NDArray[np.uint8]  # (h, w, 3)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detection:
    """One object, compared by identity.

    Attributes:
        cls: class name, in the words of the prompts.
        box: corners in pixels.
        score: confidence in [0, 1].
        mask: the object's pixels, bool (h, w), if the detector returns them.
        color: if the detector returns it; a ColorClassifier adds it when a prompt needs it.
    """

    cls: str
    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None
    color: str | None = None

    def __post_init__(self) -> None:
        if len(self.box) != 4 or not all(map(math.isfinite, self.box)) or not 0 <= self.score <= 1:
            raise ValueError(f"{self.cls}: box {self.box} must be four finite numbers, score {self.score} in [0, 1]")


class Detector(Protocol):
    """Finds the objects of an image; `protocol` identifies it."""

    @property
    def protocol(self) -> str: ...

    def detect(self, image: Pixels) -> list[Detection]: ...


class ColorClassifier(Protocol):
    """Names the color of each detection in an image; `protocol` identifies it."""

    protocol: str

    def classify(self, image: Pixels, detections: Sequence[Detection]) -> list[str]: ...


@validated
@dataclass(frozen=True)
class GenEvalRules:
    """The official evaluator's options, with its defaults."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    counting_threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    max_objects: PositiveInt = 16
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 1.0
    position_threshold: NonNegativeFloat = 0.1

    @property
    def protocol(self) -> str:
        """Name the options that differ from the official defaults."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(["GenEval rules", *changed])


OFFICIAL = GenEvalRules()
Detections = dict[str, list[Detection]]  # by class, the most confident first


@dataclass(frozen=True)
class Grade:
    """Whether an image is correct, and if not, why: one line per failure."""

    correct: bool
    reason: str


def grade(metadata: Metadata, detections: Iterable[Detection], rules: GenEvalRules = OFFICIAL) -> Grade:
    """Judge whether detections show what a prompt asks for.

    Raises:
        UserError: a clause has a color, and a box that it looks at has none.
    """
    return grade_selected(metadata, select(detections, metadata.tag, rules), rules)


def grade_selected(metadata: Metadata, selected: Detections, rules: GenEvalRules = OFFICIAL) -> Grade:
    """Judge detections that `select` returned."""
    groups: list[list[Detection] | None] = []  # of the clauses so far; None if the clause failed
    failures: list[str] = []
    for clause in metadata.include:
        found = visible(clause, selected)
        if len(found) < clause.count:
            failure = f"expected {clause.cls}>={clause.count}, found {len(found)}"
        else:
            failure = color_failure(clause, found) or position_failure(clause, found, groups, rules)
        groups.append(None if failure else found)
        failures += [failure] if failure else []
    for clause in metadata.exclude:
        n = len(selected.get(clause.cls, []))
        failures += [f"expected {clause.cls}<{clause.count}, found {n}"] if n >= clause.count else []
    return Grade(not failures, "\n".join(failures))


def select(detections: Iterable[Detection], tag: str, rules: GenEvalRules = OFFICIAL) -> Detections:
    """Return the boxes that count; classes without one are absent."""
    threshold = rules.counting_threshold if tag == COUNTING else rules.threshold
    selected: Detections = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if detection.score > threshold:
            selected.setdefault(detection.cls, []).append(detection)
    return {cls: suppress(found[: rules.max_objects], rules.max_overlap) for cls, found in selected.items()}


def suppress(found: Sequence[Detection], max_overlap: float) -> list[Detection]:
    """Apply greedy non-maximum suppression; max_overlap = 1 keeps even exact copies of a box."""
    kept: list[Detection] = []
    for candidate in found:
        if max_overlap == 1 or all(iou(candidate.box, better.box) < max_overlap for better in kept):
            kept.append(candidate)
    return kept


def visible(clause: Clause, selected: Detections) -> list[Detection]:
    """Return the boxes that a clause looks at."""
    return selected.get(clause.cls, [])[: clause.count]


def color_failure(clause: Clause, found: Sequence[Detection]) -> str:
    if clause.color is None:
        return ""
    colors = [detection.color for detection in found]
    if None in colors:
        raise UserError(
            f"a {clause.cls} has no color, and the prompt asks for {clause.color}: give a color classifier (clip_dir=)"
        )
    n = colors.count(clause.color)
    if n == clause.count:
        return ""
    counts = ", ".join(f"{colors.count(c)} {c}" for c in dict.fromkeys((*COLORS, *colors)) if c in colors)
    return f"expected {clause.color} {clause.cls}>={clause.count}, found {n} {clause.color}; and {counts}"


def position_failure(
    clause: Clause, found: Sequence[Detection], groups: Sequence[list[Detection] | None], rules: GenEvalRules
) -> str:
    if clause.position is None:
        return ""
    relation, earlier = clause.position
    targets = groups[earlier]
    if targets is None:
        return f"no target for {clause.cls} to be {relation}"
    for actual in (relations(a.box, b.box, rules.position_threshold) for a in found for b in targets):
        if relation not in actual:
            return f"expected {clause.cls} {relation} target, found {' and '.join(actual)} target"
    return ""


def relations(a: Box, b: Box, position_threshold: float = 0.1) -> list[str]:
    """Return the relations of a to b: none, one or two."""
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    shrunk = [math.copysign(max(abs(d) - position_threshold * s, 0), d) for d, s in zip(offset, sizes, strict=True)]
    if max(map(abs, shrunk)) < 1e-3:
        return []
    x, y = (r / math.hypot(*offset) for r in shrunk)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return [relation for relation, true in holds.items() if true]


def iou(a: Box, b: Box) -> float:
    """Return intersection over union, counting both corners' pixels as part of the box."""
    union = area(a) + area(b)
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return common / (union - common) if union > common else 0.0


def area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)
