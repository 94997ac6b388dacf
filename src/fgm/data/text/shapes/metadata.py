"""Captions in the form of GenEval's evaluation_metadata.jsonl (arXiv 2310.11513), there and back.

    {"tag": TAG, "include": [CLAUSE, ...][, "exclude": [CLAUSE]], "prompt": TEXT}
    CLAUSE = {"class": SHAPE, "count": N[, "color": COLOUR][, "position": [RELATION, 0]]}

A position lists its target, noun 1, first: include[1] is what stands in the relation to include[0]. Counting excludes
one object more than it asks for.
"""

from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

import torch

from fgm.data.text.shapes.grammar import COUNTING, FEWEST, MOST, PAIRED, POSITION, RELATIONS, TAGS, Captions
from fgm.data.text.shapes.vocabulary import COLOUR_NAMES, EASY, HELD_OUT, SHAPE_NAMES
from fgm.utils.errors import UserError

Metadata = dict[str, Any]


def metadata(captions: Captions) -> list[Metadata]:
    """One line for each caption."""
    rows = zip(*(column.tolist() for column in captions.columns()), captions.prompts(), strict=True)
    return [line(*row) for row in rows]


def line(tag: int, shapes: list[int], colours: list[int], count: int, relation: int, prompt: str) -> Metadata:
    include = [clause(s, c, n) for s, c, n in zip(shapes, colours, (count, 1), strict=True) if s >= 0]
    if tag == POSITION:
        include = [include[1], include[0] | {"position": [RELATIONS[relation], 0]}]
    exclude = {"exclude": [clause(shapes[0], -1, count + 1)]} if tag == COUNTING else {}
    return {"tag": TAGS[tag], "include": include, **exclude, "prompt": prompt}


def clause(shape: int, colour: int, count: int) -> Metadata:
    return {"class": SHAPE_NAMES[shape], "count": count} | ({"color": COLOUR_NAMES[colour]} if colour >= 0 else {})


def parse(lines: Sequence[Metadata]) -> Captions:
    """The captions of metadata lines.

    Raises:
        UserError: a line that no caption has.
    """
    captions = of_rows([row_of(said) for said in lines])
    for said, meant in zip(lines, metadata(captions), strict=True):
        if said != meant:
            raise UserError(f"the metadata {said} should read {meant}")
    return captions


def row_of(said: Metadata) -> tuple[int, ...]:
    """Tag, shapes, colours, count and relation."""
    try:
        tag, nouns = TAGS.index(said["tag"]), list(said["include"])
        nouns = nouns[::-1] if tag == POSITION else nouns
        shapes, colours = [SHAPE_NAMES.index(n["class"]) for n in nouns], [colour_of(n) for n in nouns]
        one_noun = () if PAIRED[tag] else (-1,)
        (shape_0, shape_1), (colour_0, colour_1) = (*shapes, *one_noun), (*colours, *one_noun)
        count = 1 if tag != COUNTING else FEWEST + range(FEWEST, MOST + 1).index(nouns[0]["count"])
        relation = RELATIONS.index(nouns[0]["position"][0]) if tag == POSITION else -1
        return tag, shape_0, shape_1, colour_0, colour_1, count, relation
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"no caption of shapes has the metadata {said}: {error}") from error


def colour_of(noun: Metadata) -> int:
    return COLOUR_NAMES.index(noun["color"]) if "color" in noun else -1


def of_rows(rows: Sequence[tuple[int, ...]]) -> Captions:
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 7)
    return Captions(table[:, 0], table[:, 1:3], table[:, 3:5], table[:, 5], table[:, 6])


def binds_unseen(said: Metadata) -> bool:
    """Whether a caption binds a colour to a shape that training held out."""
    return any((noun.get("color"), noun["class"]) in HELD_OUT for noun in said["include"])


def every(tag: str, shapes: int = EASY) -> Captions:
    """All captions of a tag in GenEval's form, held-out bindings included."""
    ones, twos = [(s, -1) for s in range(shapes)], list(permutations(range(shapes), 2))
    plain, tints = [(-1, -1)], range(len(COLOUR_NAMES))
    choices: tuple[Any, ...] = {
        "single_object": (ones, plain, [1], [-1]),
        "two_object": (twos, plain, [1], [-1]),
        "counting": (ones, plain, range(FEWEST, MOST + 1), [-1]),
        "colors": (ones, [(c, -1) for c in tints], [1], [-1]),
        "position": (twos, plain, [1], range(len(RELATIONS))),
        "color_attr": (twos, list(permutations(tints, 2)), [1], [-1]),
    }[tag]
    return of_rows([(TAGS.index(tag), *s, *c, count, relation) for s, c, count, relation in product(*choices)])
