"""The rules of GenEval (Ghosh et al., arXiv 2310.11513), as djghosh13/geneval at af4902f applies them, quirks included.

Which boxes are kept, per class:  score > threshold, strictly, 0.3 or for the tag "counting" 0.9; the max_objects most
confident; of those, with max_overlap < 1, none whose overlap with a more confident kept one reaches max_overlap.

Which of them are looked at:  a clause of include sees only the `count` most confident boxes of its class. Colour and
position are judged on exactly those, so that a right object that ranks second is not seen, and two clauses of one class
see the same boxes. Extra objects do no harm, but for exclude: wrong if there are as many boxes as it counts or more.

Position of box A relative to box B, with centres c and sizes s, per axis and then jointly:

    d = c_A - c_B        r = sign(d) max(|d| - position_threshold (s_A + s_B), 0)        e = r / |d|_2

A is left of B if e_x < -1/2, right of it if e_x > 1/2, above it if e_y < -1/2, below it if e_y > 1/2, and nothing where
|r| < 1e-3 on both axes. e is divided by the norm of the UNSHRUNK offset: near boxes may hold no relation, and a
diagonal neighbour two of them. Every seen object must stand so to every object that the earlier clause saw.

All clauses must hold; a clause complains once, about count before colour before position. Complaints are worded as in
the official results.jsonl, so that two evaluators' files can be compared. Ties of score keep the detector's order.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from fgm.data.text.geneval.prompts import Clause, Metadata
from fgm.data.text.geneval.vocabulary import COLOURS, COUNTING
from fgm.evaluation.geneval.detections import Box, Detection
from fgm.utils.errors import UserError
from fgm.utils.validation import validated

Kept = dict[str, list[Detection]]


@validated
@dataclass(frozen=True)
class GenEvalRules:
    """The official evaluator's options, at its defaults."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    counting_threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    max_objects: PositiveInt = 16
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 1.0
    position_threshold: NonNegativeFloat = 0.1

    @property
    def protocol(self) -> str:
        """What departs from the official defaults."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(["GenEval rules", *changed])


OFFICIAL = GenEvalRules()


@dataclass(frozen=True)
class Verdict:
    """correct, and if not the clauses' complaints, one a line."""

    correct: bool
    reason: str


def judge(metadata: Metadata, detections: Iterable[Detection], rules: GenEvalRules = OFFICIAL) -> Verdict:
    """Whether the detections show what the prompt asks for.

    Raises:
        UserError: a clause names a colour, and a box that it sees has none.
    """
    kept = keep(detections, metadata.tag, rules)
    groups: list[list[Detection] | None] = []
    complaints: list[str] = []
    for clause in metadata.include:
        found = seen(clause, kept)
        complaint = missing(clause, found) or miscoloured(clause, found) or misplaced(clause, found, groups, rules)
        groups.append(None if complaint else found)
        complaints.append(complaint)
    reason = "\n".join(filter(None, complaints + [surplus(clause, kept) for clause in metadata.exclude]))
    return Verdict(not reason, reason)


def keep(detections: Iterable[Detection], tag: str, rules: GenEvalRules = OFFICIAL) -> Kept:
    """The boxes that count, by class, the most confident first; classes without one are absent."""
    threshold = rules.counting_threshold if tag == COUNTING else rules.threshold
    kept: Kept = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if detection.score > threshold:
            kept.setdefault(detection.cls, []).append(detection)
    return {cls: suppress(found[: rules.max_objects], rules.max_overlap) for cls, found in kept.items()}


def suppress(found: Sequence[Detection], max_overlap: float) -> list[Detection]:
    """Greedy non-maximum suppression; at max_overlap = 1 even a box's exact copy stays."""
    kept: list[Detection] = []
    for candidate in found:
        if max_overlap == 1 or all(overlap(candidate.box, better.box) < max_overlap for better in kept):
            kept.append(candidate)
    return kept


def seen(clause: Clause, kept: Kept) -> list[Detection]:
    return kept.get(clause.cls, [])[: clause.count]


def missing(clause: Clause, found: Sequence[Detection]) -> str:
    return f"expected {clause.cls}>={clause.count}, found {len(found)}" if len(found) < clause.count else ""


def miscoloured(clause: Clause, found: Sequence[Detection]) -> str:
    if clause.colour is None:
        return ""
    colours = [detection.colour for detection in found]
    if None in colours:
        raise UserError(
            f"a {clause.cls} has no colour, and the prompt asks for {clause.colour}: give a colour classifier"
        )
    right = colours.count(clause.colour)
    if right == clause.count:
        return ""
    tally = ", ".join(f"{colours.count(c)} {c}" for c in dict.fromkeys((*COLOURS, *colours)) if c in colours)
    return f"expected {clause.colour} {clause.cls}>={clause.count}, found {right} {clause.colour}; and {tally}"


def misplaced(
    clause: Clause, found: Sequence[Detection], groups: Sequence[list[Detection] | None], rules: GenEvalRules
) -> str:
    if clause.position is None:
        return ""
    relation, earlier = clause.position
    targets = groups[earlier]
    if targets is None:
        return f"no target for {clause.cls} to be {relation}"
    for held in (relations(a.box, b.box, rules.position_threshold) for a in found for b in targets):
        if relation not in held:
            return f"expected {clause.cls} {relation} target, found {' and '.join(held)} target"
    return ""


def surplus(clause: Clause, kept: Kept) -> str:
    found = len(kept.get(clause.cls, []))
    return f"expected {clause.cls}<{clause.count}, found {found}" if found >= clause.count else ""


def relations(a: Box, b: Box, position_threshold: float = 0.1) -> list[str]:
    """The relations in which a stands to b: none, one or two."""
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    shrunk = [math.copysign(max(abs(d) - position_threshold * s, 0), d) for d, s in zip(offset, sizes, strict=True)]
    if max(map(abs, shrunk)) < 1e-3:
        return []
    x, y = (r / math.hypot(*offset) for r in shrunk)
    held = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return [relation for relation, holds in held.items() if holds]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, corners taken as whole pixels that belong to the box."""
    union = area(a) + area(b)
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return common / (union - common) if union > common else 0.0


def area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)
