"""What the tests of GenEval share: prompts and layouts on the disk, what right pictures show, and an oracle."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fgm.data.text.geneval.prompts import Metadata
from fgm.evaluation.geneval.detections import Detection, Pixels, RecordedDetector
from fgm.evaluation.geneval.layout import write_sample
from fgm.utils.files import write_lines

STEP = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}


def write_prompts(path: Path, prompts: Sequence[Metadata]) -> None:
    write_lines(path, (metadata.line() for metadata in prompts))


def write_layout(
    directory: Path, prompts: Sequence[Metadata], draw: Callable[[int, int], Pixels], per_prompt: int
) -> None:
    """Export draw(index, ordinal), uint8 (h, w, 3), for all prompts."""
    for index, metadata in enumerate(prompts):
        for ordinal in range(per_prompt):
            write_sample(directory, index, ordinal, metadata, draw(index, ordinal))


def truth(metadata: Metadata) -> list[Detection]:
    """What a right picture shows."""
    found = []
    for clause in metadata.include:
        dx, dy = STEP[clause.position[0]] if clause.position else (0, 0)
        box = (40 + dx, 40 + dy, 50 + dx, 50 + dy)
        found += [Detection(clause.cls, box, 0.95, colour=clause.colour)] * clause.count
    return found


def oracle(detections: Mapping[str, Sequence[Detection]]) -> RecordedDetector:
    return RecordedDetector("oracle", detections)
