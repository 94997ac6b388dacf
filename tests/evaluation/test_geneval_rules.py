"""GenEval's rules, quirk by quirk, as a table.

    asked   "TAG: CLAUSE, CLAUSE | CLAUSE"      include | exclude; CLAUSE = "2 red dog left of 0"
    seen    "3x dog .95 red @50,40/10,10; ..."  times, class, score, colour, centre / size (10 x 10 unless said)

The last column is a fragment of the reason; a right picture has none.
"""

import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from fgm.data.text.geneval.prompts import Clause, Metadata
from fgm.data.text.geneval.vocabulary import COLOURS, RELATIONS
from fgm.evaluation.geneval.detections import Box, Detection
from fgm.evaluation.geneval.rules import GenEvalRules, judge, keep, overlap, relations
from fgm.utils.errors import UserError

OBJECT = re.compile(
    r"(?:(\d+)x )?([a-z ]+?) (\d*\.\d+|1)(?: ([a-z]+))?(?: @([-.\d]+),([-.\d]+)(?:/([.\d]+),([.\d]+))?)?"
)
CLAUSE = re.compile(rf"(?:(\d+) )?(?:({'|'.join(COLOURS)}) )?([a-z ]+?)(?: ({'|'.join(RELATIONS)}) (\d))?")


def asked(text: str) -> Metadata:
    tag, _, rest = text.partition(": ")
    include, _, exclude = rest.partition(" | ")
    return Metadata(tag, f"a photo of {rest}", clauses(include), clauses(exclude))


def clauses(text: str) -> tuple[Clause, ...]:
    return tuple(clause(*CLAUSE.fullmatch(part).groups()) for part in text.split(", ") if part)


def clause(count: str | None, colour: str | None, cls: str, relation: str | None, earlier: str | None) -> Clause:
    return Clause(cls, int(count or 1), colour, (relation, int(earlier)) if relation else None)


def seen(text: str) -> list[Detection]:
    return [found for part in text.split("; ") if part for found in objects(*OBJECT.fullmatch(part).groups())]


def objects(times: str | None, cls: str, score: str, colour: str | None, *place: str | None) -> list[Detection]:
    x, y, w, h = (float(value or default) for value, default in zip(place, (50, 50, 10, 10), strict=True))
    box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return [Detection(cls, box, float(score), colour=colour)] * int(times or 1)


GOLDEN = [
    # presence: the threshold is strict, and only the class counts
    ("single_object: dog", "dog .9", True, ""),
    ("single_object: dog", "", False, "expected dog>=1, found 0"),
    ("single_object: dog", "cat .9", False, "expected dog>=1, found 0"),
    ("single_object: dog", "dog .31", True, ""),
    ("single_object: dog", "dog .3", False, "expected dog>=1, found 0"),
    ("single_object: dog", "dog .29", False, "expected dog>=1, found 0"),
    ("single_object: dog", "dog 1", True, ""),
    ("single_object: hot dog", "dog .9", False, "expected hot dog>=1, found 0"),
    ("single_object: dog", "hot dog .9", False, "expected dog>=1, found 0"),
    ("single_object: tv remote", "tv .9; tv remote .4", True, ""),
    # extra objects do no harm outside of counting
    ("single_object: bench", "5x bench .9", True, ""),
    ("single_object: bench", "bench .9; 20x person .99", True, ""),
    ("two_object: dog, cat", "3x dog .9; 2x cat .5", True, ""),
    # two objects: all clauses must hold, each complains for itself
    ("two_object: dog, cat", "dog .9; cat .9", True, ""),
    ("two_object: dog, cat", "cat .31; dog .31", True, ""),
    ("two_object: dog, cat", "dog .9", False, "expected cat>=1, found 0"),
    ("two_object: dog, cat", "cat .9", False, "expected dog>=1, found 0"),
    ("two_object: dog, cat", "", False, "expected dog>=1, found 0\nexpected cat>=1, found 0"),
    # two clauses of one class are content with the same box
    ("two_object: dog, dog", "dog .9", True, ""),
    ("color_attr: red dog, blue dog", "dog .9 red; dog .8 blue", False, "blue dog>=1, found 0 blue; and 1 red"),
    ("color_attr: red dog, red dog", "dog .9 red", True, ""),
    # counting: 0.9, strictly, and exactly n
    ("counting: 2 dog | 3 dog", "2x dog .95", True, ""),
    ("counting: 2 dog | 3 dog", "dog .95", False, "expected dog>=2, found 1"),
    ("counting: 2 dog | 3 dog", "3x dog .95", False, "expected dog<3, found 3"),
    ("counting: 2 dog | 3 dog", "4x dog .95", False, "expected dog<3, found 4"),
    ("counting: 2 dog | 3 dog", "2x dog .95; 5x dog .9", True, ""),
    ("counting: 2 dog | 3 dog", "2x dog .9", False, "expected dog>=2, found 0"),
    ("counting: 2 dog | 3 dog", "dog .95; dog .85", False, "expected dog>=2, found 1"),
    ("counting: 2 dog | 3 dog", "2x dog .91; 9x cat .99", True, ""),
    ("counting: 4 dog | 5 dog", "4x dog .95", True, ""),
    ("counting: 4 dog | 5 dog", "3x dog .95", False, "expected dog>=4, found 3"),
    ("counting: 4 dog | 5 dog", "5x dog .95", False, "expected dog<5, found 5"),
    # the cap of 16: what is beyond is neither seen nor punished
    ("counting: 16 dog | 17 dog", "40x dog .95", True, ""),
    ("counting: 17 dog", "40x dog .95", False, "expected dog>=17, found 16"),
    ("single_object: cat", "40x dog .99; cat .31", True, ""),
    # the lower threshold holds for every other tag, and exclude where it is written
    ("single_object: 2 dog", "2x dog .31", True, ""),
    ("single_object: 2 dog | 3 dog", "3x dog .31", False, "expected dog<3, found 3"),
    ("single_object: dog | 1 cat", "dog .9; cat .31", False, "expected cat<1, found 1"),
    ("single_object: dog | 1 cat", "dog .9; cat .3", True, ""),
    ("single_object: dog | 1 cat, 1 bus", "dog .9; bus .9; cat .9", False, "cat<1, found 1\nexpected bus<1, found 1"),
    ("single_object: dog | 1 cat", "cat .9", False, "expected dog>=1, found 0\nexpected cat<1, found 1"),
    # colour: only the most confident box is looked at
    ("colors: red car", "car .9 red", True, ""),
    ("colors: red car", "car .9 blue", False, "expected red car>=1, found 0 red; and 1 blue"),
    ("colors: red car", "car .8 red; car .9 blue", False, "expected red car>=1, found 0 red; and 1 blue"),
    ("colors: red car", "car .9 red; car .8 blue", True, ""),
    ("colors: red car", "car .3 red", False, "expected car>=1, found 0"),
    ("colors: 2 red car", "2x car .9 red; car .8 blue", True, ""),
    ("colors: 2 red car", "car .9 red; car .8 blue", False, "found 1 red; and 1 red, 1 blue"),
    ("colors: 2 red car", "car .9 red", False, "expected car>=2, found 1"),
    ("colors: 3 red car", "car .9 white; car .8 orange; car .7 red", False, "and 1 red, 1 orange, 1 white"),
    ("colors: orange orange", "orange .9 orange", True, ""),
    ("color_attr: red car, blue bus", "car .9 red; bus .9 blue", True, ""),
    ("color_attr: red car, blue bus", "car .9 blue; bus .9 red", False, "found 0 red; and 1 blue\nexpected blue"),
    ("color_attr: red car, blue bus", "car .9 red; bus .9 red", False, "expected blue bus>=1, found 0 blue; and 1 red"),
    ("color_attr: red car, blue bus", "car .9 red", False, "expected bus>=1, found 0"),
    # position: centres and sizes, y downwards
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @20,50", True, ""),
    ("position: cat, dog left of 0", "cat .9 @20,50; dog .9 @50,50", False, "left of target, found right of"),
    ("position: cat, dog right of 0", "cat .9 @20,50; dog .9 @50,50", True, ""),
    ("position: cat, dog above 0", "cat .9 @50,50; dog .9 @50,20", True, ""),
    ("position: cat, dog below 0", "cat .9 @50,50; dog .9 @50,80", True, ""),
    ("position: cat, dog above 0", "cat .9 @50,50; dog .9 @50,80", False, "dog above target, found below target"),
    ("position: cat, dog left of 0", "cat .9; dog .9", False, "expected dog left of target, found  target"),
    # a diagonal neighbour holds both relations, a nearer one neither
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @40,40", True, ""),
    ("position: cat, dog above 0", "cat .9 @50,50; dog .9 @40,40", True, ""),
    ("position: cat, dog below 0", "cat .9 @50,50; dog .9 @40,40", False, "found left of and above target"),
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @43.2,43.2", False, "found  target"),
    # a position needs a target that matched, and is not asked of an object that did not
    ("position: cat, dog left of 0", "dog .9 @20,50", False, "cat>=1, found 0\nno target for dog to be left of"),
    ("position: cat, dog left of 0", "cat .9 @50,50", False, "expected dog>=1, found 0"),
    ("position: red cat, dog left of 0", "cat .9 blue @50,50; dog .9 @20,50", False, "no target for dog to be left of"),
    ("position: cat, red dog left of 0", "cat .9 @50,50; dog .9 blue @90,50", False, "red dog>=1, found 0 red"),
    ("position: cat, red dog left of 0", "cat .9 @50,50; dog .9 red @90,50", False, "found right of target"),
    # only the most confident boxes stand in the relation, and all of them to all of those
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @90,50; dog .8 @10,50", False, "found right of target"),
    ("position: cat, dog left of 0", "cat .9 @50,50; cat .8 @5,50; dog .9 @20,50; dog .8 @90,50", True, ""),
    ("position: cat, 2 dog left of 0", "cat .9 @50,50; dog .9 @20,50; dog .8 @10,50", True, ""),
    ("position: cat, 2 dog left of 0", "cat .9 @50,50; dog .9 @20,50; dog .8 @90,50", False, "found right of target"),
    ("position: 2 cat, dog left of 0", "cat .9 @50,50; cat .8 @5,50; dog .9 @20,50", False, "found right of target"),
    # an object may stand to itself, a target be an object with a position
    ("position: dog, dog left of 0", "dog .9 @20,50; dog .8 @50,50", False, "found  target"),
    ("position: cat, dog left of 0, bus above 1", "cat .9 @50,50; dog .9 @20,50; bus .9 @20,20", True, ""),
    ("position: cat, dog left of 0, bus above 1", "cat .9 @50,50; dog .9 @80,50; bus .9 @80,20", False, "no target"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "scene", "correct", "fragment"), GOLDEN)
def test_golden(prompt: str, scene: str, correct: bool, fragment: str) -> None:
    verdict = judge(asked(prompt), seen(scene))
    assert verdict.correct is correct
    assert fragment in verdict.reason and bool(verdict.reason) is not correct


OPTIONS = [
    ("single_object: dog", "dog .2", {"threshold": 0.1}, True),
    ("counting: 2 dog | 3 dog", "2x dog .6", {"counting_threshold": 0.5}, True),
    ("counting: 3 dog", "3x dog .95", {"max_objects": 2}, False),
    ("counting: 1 dog | 2 dog", "2x dog .95", {}, False),
    ("counting: 1 dog | 2 dog", "2x dog .95", {"max_overlap": 0.99}, True),
    ("counting: 1 dog | 2 dog", "dog .96 @50,50; dog .95 @56,50", {"max_overlap": 0.2}, True),
    ("counting: 1 dog | 2 dog", "dog .96 @50,50; dog .95 @56,50", {"max_overlap": 0.5}, False),
    ("counting: 1 dog | 2 dog", "dog .96 @4.5,4.5/9,9; dog .95 @4.5,2/9,4", {"max_overlap": 0.5}, True),  # reaches it
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @46,50", {"position_threshold": 0.0}, True),
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @20,50", {"position_threshold": 1.0}, False),
]


@pytest.mark.parametrize(("prompt", "scene", "options", "correct"), OPTIONS)
def test_an_option_moves_the_verdict(prompt: str, scene: str, options: dict[str, float], correct: bool) -> None:
    assert judge(asked(prompt), seen(scene), GenEvalRules(**options)).correct is correct


def box(x: float, y: float, w: float = 10, h: float = 10) -> Box:
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


GEOMETRY = [
    # offset of a from b = (50, 50), sizes of a and b; two 10 x 10 boxes shrink each axis by 2
    ((-4.01, 0), (10, 10), (10, 10), ["left of"]),
    ((-4, 0), (10, 10), (10, 10), []),  # (4 - 2) / 4 is one half, and not more
    ((4.01, 0), (10, 10), (10, 10), ["right of"]),
    ((0, -4.01), (10, 10), (10, 10), ["above"]),
    ((0, 4.01), (10, 10), (10, 10), ["below"]),
    ((-2, 0), (10, 10), (10, 10), []),  # nothing is left of the offset
    ((-1, -1), (10, 10), (10, 10), []),
    ((0, 0), (10, 10), (10, 10), []),
    ((-6.8, -6.8), (10, 10), (10, 10), []),  # (d - 2) / (d sqrt 2) reaches one half at d = 6.83
    ((-6.9, -6.9), (10, 10), (10, 10), ["left of", "above"]),
    ((6.9, 6.9), (10, 10), (10, 10), ["right of", "below"]),
    ((6.9, -6.9), (10, 10), (10, 10), ["right of", "above"]),
    ((-100, -50), (10, 10), (10, 10), ["left of"]),
    ((-100, -60), (10, 10), (10, 10), ["left of"]),  # far away the second one starts at 30 degrees, a little late
    ((-100, -62), (10, 10), (10, 10), ["left of", "above"]),
    ((-62, -100), (10, 10), (10, 10), ["left of", "above"]),
    ((-50, -100), (10, 10), (10, 10), ["above"]),
    ((-40, 0), (100, 10), (100, 10), []),  # large boxes must be further apart: (40 - 20) / 40
    ((-41, 0), (100, 10), (100, 10), ["left of"]),
    ((-41, 0), (10, 100), (10, 100), ["left of"]),  # along the axis alone
    ((-21, 0), (10, 10), (90, 10), ["left of"]),  # (21 - 10) / 21
    ((-20, 0), (10, 10), (90, 10), []),
]


@pytest.mark.parametrize(("offset", "size_a", "size_b", "held"), GEOMETRY)
def test_geometry(
    offset: tuple[float, float], size_a: tuple[float, float], size_b: tuple[float, float], held: list[str]
) -> None:
    assert relations(box(50 + offset[0], 50 + offset[1], *size_a), box(50, 50, *size_b)) == held


def test_less_than_a_thousandth_of_a_pixel_is_nowhere() -> None:
    assert relations(box(50.0005, 50), box(50, 50), position_threshold=0) == []
    assert relations(box(50.002, 50), box(50, 50), position_threshold=0) == ["right of"]


def random_box(rng: random.Random) -> Box:
    return box(rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(1, 60), rng.uniform(1, 60))


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TRANSPOSED = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


def test_relations_turn_with_the_boxes() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = random_box(rng), random_box(rng)
        held = relations(a, b)
        assert set(relations(b, a)) == {OPPOSITE[relation] for relation in held}
        turned = [(x[1], x[0], x[3], x[2]) for x in (a, b)]
        assert set(relations(*turned)) == {TRANSPOSED[relation] for relation in held}
        assert len(held) <= 2


def test_overlap_counts_the_last_pixel() -> None:
    assert overlap((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert overlap((0, 0, 9, 9), (10, 0, 19, 9)) == 0
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)


def random_scene(rng: random.Random) -> list[Detection]:
    names, colours = ("dog", "cat"), COLOURS[:2]
    return [
        Detection(rng.choice(names), random_box(rng), rng.random(), colour=rng.choice(colours))
        for _ in range(rng.randint(0, 6))
    ]


PROMPTS = [asked(prompt) for prompt, *_ in GOLDEN if not re.search("car|bus|hot|orange", prompt)]


def test_the_order_of_detections_does_not_matter() -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene, prompt = random_scene(rng), rng.choice(PROMPTS)
        verdict = judge(prompt, scene)
        assert judge(prompt, rng.sample(scene, len(scene))) == verdict


def test_boxes_below_the_threshold_do_not_exist() -> None:
    rng = random.Random(2)
    for _ in range(300):
        scene, prompt = random_scene(rng), rng.choice(PROMPTS)
        faint = [replace(detection, score=0.3 * rng.random()) for detection in random_scene(rng)]
        assert judge(prompt, scene + faint) == judge(prompt, scene)


def test_judging_what_was_kept_changes_nothing() -> None:
    rng = random.Random(3)
    for rules in (GenEvalRules(), GenEvalRules(max_overlap=0.3, max_objects=3)):
        for _ in range(200):
            scene, prompt = random_scene(rng), rng.choice(PROMPTS)
            kept = [detection for found in keep(scene, prompt.tag, rules).values() for detection in found]
            assert judge(prompt, kept, rules) == judge(prompt, scene, rules)


def test_kept_boxes_are_sorted_and_ties_keep_their_order() -> None:
    scene = seen("dog .5 @1,1; dog .9 @2,2; dog .5 @3,3; cat .4 @4,4")
    kept = keep(scene, "single_object")
    assert [scene.index(detection) for detection in kept["dog"]] == [1, 0, 2]
    assert all(a.score >= b.score for found in kept.values() for a, b in pairwise(found))
    assert "bus" not in kept


def test_an_unknown_colour_is_refused_and_not_wrong() -> None:
    with pytest.raises(UserError, match=r"a car has no colour.*asks for red.*colour classifier"):
        judge(asked("colors: red car"), seen("car .9"))
    assert not judge(asked("colors: red car"), []).correct


def test_protocol_tells_what_departs_from_the_official_rules() -> None:
    assert GenEvalRules().protocol == "GenEval rules"
    assert GenEvalRules(threshold=0.5, max_objects=4).protocol == "GenEval rules, threshold=0.5, max_objects=4"
