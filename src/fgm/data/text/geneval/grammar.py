"""A set of prompts in GenEval's shape, made by OUR grammar from a seed. It is NOT the official file, whose prompts stay
with its checkout; a score on these compares with other scores on these alone, and the digest in the protocol says so.

    single_object   a photo of a X                     every class once
    two_object      a photo of a X and a Y
    counting        a photo of two Xs                  two to four, and not one more
    colors          a photo of a red X                 no person
    position        a photo of a X above a Y           the target Y is the first clause
    color_attr      a photo of a red X and a blue Y    two classes, two colours, no person

As many prompts per tag as in the official file, in its order, no two alike. The plural is naive (sandwichs, knifes;
es after s) and the article goes by the first letter (an orange umbrella, a hot dog), as in GenEval's own prompts.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
from numpy.random import Generator

from fgm.data.text.geneval.prompts import Clause, Metadata
from fgm.data.text.geneval.vocabulary import COLOURS, COUNTING, OBJECTS, PROMPTS_PER_TAG, RELATIONS

NUMBERS = {2: "two", 3: "three", 4: "four"}
THINGS = tuple(name for name in OBJECTS if name != "person")


def generate_prompts(seed: int = 0) -> list[Metadata]:
    """553 prompts, a pure function of the seed."""
    prompts: list[Metadata] = []
    for number, (tag, count) in enumerate(PROMPTS_PER_TAG.items()):
        prompts += islice(distinct(SENTENCES[tag], np.random.default_rng([seed, number])), count)
    return prompts


def distinct(sentence: Callable[[Generator], Metadata], generator: Generator) -> Iterable[Metadata]:
    """Endless draws, each prompt once."""
    used: set[str] = set()
    while True:
        metadata = sentence(generator)
        if metadata.prompt not in used:
            used.add(metadata.prompt)
            yield metadata


def single_object(generator: Generator) -> Metadata:
    (name,) = pick(generator, OBJECTS, 1)
    return Metadata("single_object", photo(article(name)), (Clause(name),))


def two_object(generator: Generator) -> Metadata:
    a, b = pick(generator, OBJECTS, 2)
    return Metadata("two_object", photo(f"{article(a)} and {article(b)}"), (Clause(a), Clause(b)))


def counting(generator: Generator) -> Metadata:
    (name,), n = pick(generator, OBJECTS, 1), int(generator.integers(2, 5))
    return Metadata(COUNTING, photo(f"{NUMBERS[n]} {plural(name)}"), (Clause(name, n),), (Clause(name, n + 1),))


def colors(generator: Generator) -> Metadata:
    (name,), (colour,) = pick(generator, THINGS, 1), pick(generator, COLOURS, 1)
    return Metadata("colors", photo(f"{article(colour)} {name}"), (Clause(name, colour=colour),))


def position(generator: Generator) -> Metadata:
    (a, target), (relation,) = pick(generator, OBJECTS, 2), pick(generator, RELATIONS, 1)
    clauses = Clause(target), Clause(a, position=(relation, 0))
    return Metadata("position", photo(f"{article(a)} {relation} {article(target)}"), clauses)


def color_attr(generator: Generator) -> Metadata:
    things = list(zip(pick(generator, THINGS, 2), pick(generator, COLOURS, 2), strict=True))
    words = " and ".join(f"{article(colour)} {name}" for name, colour in things)
    return Metadata("color_attr", photo(words), tuple(Clause(name, colour=colour) for name, colour in things))


SENTENCES = {f.__name__: f for f in (single_object, two_object, counting, colors, position, color_attr)}


def pick(generator: Generator, words: tuple[str, ...], count: int) -> list[str]:
    """Different words, all equally likely."""
    return [words[i] for i in generator.choice(len(words), count, replace=False)]


def photo(words: str) -> str:
    return f"a photo of {words}"


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"
