"""Shared by the tests of GenEval: example prompts, folders of images, and detections that satisfy a prompt."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fgm.data.geneval import COLORS, OBJECTS, RELATIONS, TAGS, Clause, Metadata
from fgm.evaluation.geneval.folder import write_sample
from fgm.evaluation.geneval.rules import Detection, Pixels
from fgm.utils.files import write_lines

OFFSET = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}


def example_prompts(per_tag: int | Mapping[str, int]) -> list[Metadata]:
    """Distinct prompts of every tag, in the official order and form."""
    counts = dict.fromkeys(TAGS, per_tag) if isinstance(per_tag, int) else per_tag
    return [example(tag, i) for tag in TAGS for i in range(counts[tag])]


def example(tag: str, i: int) -> Metadata:
    a, b = OBJECTS[1 + i % 79], OBJECTS[1 + (i + 1 + i // 79) % 79]
    color, other = COLORS[i % 10], COLORS[(i + 3) % 10]
    include = {
        "single_object": (Clause(a),),
        "two_object": (Clause(a), Clause(b)),
        "counting": (Clause(a, 2 + i % 3),),
        "colors": (Clause(a, color=color),),
        "position": (Clause(b), Clause(a, position=(RELATIONS[i % 4], 0))),
        "color_attr": (Clause(a, color=color), Clause(b, color=other)),
    }[tag]
    exclude = (Clause(a, include[0].count + 1),) if tag == "counting" else ()
    return Metadata(tag, f"a photo of {tag} {i}", include, exclude)


def write_prompts(path: Path, prompts: Sequence[Metadata]) -> None:
    write_lines(path, (metadata.line() for metadata in prompts))


def write_layout(
    directory: Path, prompts: Sequence[Metadata], draw: Callable[[int, int], Pixels], per_prompt: int
) -> None:
    """Write draw(index, ordinal), uint8 (h, w, 3), for all prompts."""
    for index, metadata in enumerate(prompts):
        for ordinal in range(per_prompt):
            write_sample(directory, index, ordinal, metadata, draw(index, ordinal))


def correct_detections(metadata: Metadata) -> list[Detection]:
    """What a correct image shows."""
    found = []
    for clause in metadata.include:
        dx, dy = OFFSET[clause.position[0]] if clause.position else (0, 0)
        box = (40 + dx, 40 + dy, 50 + dx, 50 + dy)
        found += [Detection(clause.cls, box, 0.95, color=clause.color)] * clause.count
    return found
