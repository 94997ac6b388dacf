"""GenEval's rules, quirk by quirk, as a table.

    prompt      "TAG: CLAUSE, CLAUSE | CLAUSE"      include | exclude; CLAUSE = "2 red dog left of 0"
    detections  "3x dog .95 red @50,40/10,10; ..."  times, class, score, color, center / size (10 x 10 by default)

The last column is a part of the reason; a correct image has none.
"""

import random
import re
from dataclasses import replace
from hashlib import sha256

import pytest

from fgm.data.geneval import COLORS, RELATIONS, Clause, Metadata
from fgm.evaluation.geneval.rules import Box, Detection, GenEvalRules, grade, iou, relations, select
from fgm.utils.errors import UserError

OBJECT = re.compile(
    r"(?:(\d+)x )?([a-z ]+?) (\d*\.\d+|1)(?: ([a-z]+))?(?: @([-.\d]+),([-.\d]+)(?:/([.\d]+),([.\d]+))?)?"
)
NAMES = ("dog", "cat", "bus")
OFFICIAL_GRADES = (706, "0cdd8002d8321adb")
CLAUSE = re.compile(rf"(?:(\d+) )?(?:({'|'.join(COLORS)}) )?([a-z ]+?)(?: ({'|'.join(RELATIONS)}) (\d))?")


def parse_prompt(text: str) -> Metadata:
    tag, _, rest = text.partition(": ")
    include, _, exclude = rest.partition(" | ")
    return Metadata(tag, f"a photo of {rest}", clauses(include), clauses(exclude))


def clauses(text: str) -> tuple[Clause, ...]:
    return tuple(parse_clause(*CLAUSE.fullmatch(part).groups()) for part in text.split(", ") if part)


def parse_clause(count: str | None, color: str | None, cls: str, relation: str | None, earlier: str | None) -> Clause:
    return Clause(cls, int(count or 1), color, (relation, int(earlier)) if relation else None)


def parse_scene(text: str) -> list[Detection]:
    return [found for part in text.split("; ") if part for found in parse_objects(*OBJECT.fullmatch(part).groups())]


def parse_objects(times: str | None, cls: str, score: str, color: str | None, *place: str | None) -> list[Detection]:
    x, y, w, h = (float(value or default) for value, default in zip(place, (50, 50, 10, 10), strict=True))
    box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return [Detection(cls, box, float(score), color=color)] * int(times or 1)


GOLDEN = [
    # presence: the threshold is strict, and only the class counts
    ("single_object: dog", "dog .9", True, ""),
    ("single_object: dog", "", False, "expected dog>=1, found 0"),
    ("single_object: dog", "cat .9", False, "expected dog>=1, found 0"),
    ("single_object: dog", "dog .31", True, ""),
    ("single_object: dog", "dog .3", False, "expected dog>=1, found 0"),
    ("single_object: dog", "dog 1", True, ""),
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
    # the cap of 16: more boxes are neither visible nor punished
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
    # color: only the most confident box is looked at
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
    # position: centers and sizes, y downwards
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @20,50", True, ""),
    ("position: cat, dog left of 0", "cat .9 @20,50; dog .9 @50,50", False, "left of target, found right of"),
    ("position: cat, dog right of 0", "cat .9 @20,50; dog .9 @50,50", True, ""),
    ("position: cat, dog above 0", "cat .9 @50,50; dog .9 @50,20", True, ""),
    ("position: cat, dog below 0", "cat .9 @50,50; dog .9 @50,80", True, ""),
    ("position: cat, dog above 0", "cat .9 @50,50; dog .9 @50,80", False, "dog above target, found below target"),
    ("position: cat, dog left of 0", "cat .9; dog .9", False, "expected dog left of target, found  target"),
    # a diagonal neighbor has both relations, a nearer one neither
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @40,40", True, ""),
    ("position: cat, dog above 0", "cat .9 @50,50; dog .9 @40,40", True, ""),
    ("position: cat, dog below 0", "cat .9 @50,50; dog .9 @40,40", False, "found left of and above target"),
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @43.2,43.2", False, "found  target"),
    # a position needs a target that matched, and an object that matched
    ("position: cat, dog left of 0", "dog .9 @20,50", False, "cat>=1, found 0\nno target for dog to be left of"),
    ("position: cat, dog left of 0", "cat .9 @50,50", False, "expected dog>=1, found 0"),
    ("position: red cat, dog left of 0", "cat .9 blue @50,50; dog .9 @20,50", False, "no target for dog to be left of"),
    ("position: cat, red dog left of 0", "cat .9 @50,50; dog .9 blue @90,50", False, "red dog>=1, found 0 red"),
    ("position: cat, red dog left of 0", "cat .9 @50,50; dog .9 red @90,50", False, "found right of target"),
    # only the most confident boxes need the relation, from all of them to all of the target's
    ("position: cat, dog left of 0", "cat .9 @50,50; dog .9 @90,50; dog .8 @10,50", False, "found right of target"),
    ("position: cat, dog left of 0", "cat .9 @50,50; cat .8 @5,50; dog .9 @20,50; dog .8 @90,50", True, ""),
    ("position: cat, 2 dog left of 0", "cat .9 @50,50; dog .9 @20,50; dog .8 @10,50", True, ""),
    ("position: cat, 2 dog left of 0", "cat .9 @50,50; dog .9 @20,50; dog .8 @90,50", False, "found right of target"),
    ("position: 2 cat, dog left of 0", "cat .9 @50,50; cat .8 @5,50; dog .9 @20,50", False, "found right of target"),
    # an object may be its own target, and a target may have a position
    ("position: dog, dog left of 0", "dog .9 @20,50; dog .8 @50,50", False, "found  target"),
    ("position: cat, dog left of 0, bus above 1", "cat .9 @50,50; dog .9 @20,50; bus .9 @20,20", True, ""),
    ("position: cat, dog left of 0, bus above 1", "cat .9 @50,50; dog .9 @80,50; bus .9 @80,20", False, "no target"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "scene", "correct", "fragment"), GOLDEN)
def test_rule(prompt: str, scene: str, correct: bool, fragment: str) -> None:
    result = grade(parse_prompt(prompt), parse_scene(scene))
    assert result.correct is correct
    assert fragment in result.reason and bool(result.reason) is not correct


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
def test_option_changes_the_grade(prompt: str, scene: str, options: dict[str, float], correct: bool) -> None:
    assert grade(parse_prompt(prompt), parse_scene(scene), GenEvalRules(**options)).correct is correct


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


@pytest.mark.parametrize(("offset", "size_a", "size_b", "actual"), GEOMETRY)
def test_relations_of_boxes(
    offset: tuple[float, float], size_a: tuple[float, float], size_b: tuple[float, float], actual: list[str]
) -> None:
    assert relations(box(50 + offset[0], 50 + offset[1], *size_a), box(50, 50, *size_b)) == actual


def test_offset_below_a_thousandth_of_a_pixel_has_no_relation() -> None:
    assert relations(box(50.0005, 50), box(50, 50), position_threshold=0) == []
    assert relations(box(50.002, 50), box(50, 50), position_threshold=0) == ["right of"]


def random_box(rng: random.Random) -> Box:
    return box(rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(1, 60), rng.uniform(1, 60))


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TRANSPOSED = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


def test_relations_are_equivariant_to_swap_and_transposition() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = random_box(rng), random_box(rng)
        actual = relations(a, b)
        assert set(relations(b, a)) == {OPPOSITE[relation] for relation in actual}
        turned = [(x[1], x[0], x[3], x[2]) for x in (a, b)]
        assert set(relations(*turned)) == {TRANSPOSED[relation] for relation in actual}
        assert len(actual) <= 2


def test_iou_includes_the_last_pixel() -> None:
    assert iou((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert iou((0, 0, 9, 9), (10, 0, 19, 9)) == 0
    assert iou((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)


def random_prompt(rng: random.Random) -> Metadata:
    clauses = [
        Clause(
            rng.choice(NAMES), rng.randint(1, 3), rng.choice([*COLORS[:3], None, None]),
            (rng.choice(RELATIONS), rng.randrange(i)) if i and rng.random() < 0.6 else None,
        )
        for i in range(rng.randint(1, 3))
    ]  # fmt: skip
    excluded = [Clause(rng.choice(NAMES), rng.randint(1, 4))] * rng.randint(0, 1)
    return Metadata(rng.choice(["counting", "colors"]), "a photo", tuple(clauses), tuple(excluded))


def random_scene(rng: random.Random) -> list[Detection]:
    return [
        Detection(
            rng.choice(NAMES),
            random_box(rng),
            rng.choice([0.3, rng.random(), rng.uniform(0.9, 1)]),
            color=rng.choice(COLORS[:3]),
        )
        for _ in range(rng.randint(0, 8))
    ]


def test_grades_of_random_scenes_are_those_of_the_official_code() -> None:
    """OFFICIAL_GRADES are the number of correct images and a hash of all grades by djghosh13/geneval's evaluate_image()."""
    rng, content, correct = random.Random(0), sha256(), 0
    for _ in range(20_000):
        prompt, scene = random_prompt(rng), random_scene(rng)
        rules = rng.choice([GenEvalRules(), GenEvalRules(max_overlap=0.3, position_threshold=0.3)])
        result = grade(prompt, scene, rules)
        content.update(f"{result.correct} {result.reason}".encode())
        correct += result.correct
    assert (correct, content.hexdigest()[:16]) == OFFICIAL_GRADES


def test_order_of_detections_and_faint_boxes_do_not_matter() -> None:
    rng = random.Random(1)
    for _ in range(1000):
        scene, prompt = random_scene(rng), random_prompt(rng)
        scene = [replace(detection, score=rng.uniform(0.31, 1)) for detection in scene]
        faint = [replace(detection, score=0.3 * rng.random()) for detection in random_scene(rng)]
        assert grade(prompt, rng.sample(scene + faint, len(scene + faint))) == grade(prompt, scene)


def test_selection_sorts_by_score_and_keeps_the_order_of_ties() -> None:
    scene = parse_scene("dog .5 @1,1; dog .9 @2,2; dog .5 @3,3; cat .4 @4,4")
    selected = select(scene, "single_object")
    assert [scene.index(detection) for detection in selected["dog"]] == [1, 0, 2]
    assert selected.keys() == {"dog", "cat"}


def test_missing_color_is_an_error_and_not_a_failure() -> None:
    with pytest.raises(UserError, match=r"a car has no color.*asks for red.*color classifier"):
        grade(parse_prompt("colors: red car"), parse_scene("car .9"))
    assert not grade(parse_prompt("colors: red car"), []).correct


def test_protocol_names_what_differs_from_the_official_rules() -> None:
    assert GenEvalRules().protocol == "GenEval rules"
    assert GenEvalRules(threshold=0.5, max_objects=4).protocol == "GenEval rules, threshold=0.5, max_objects=4"
