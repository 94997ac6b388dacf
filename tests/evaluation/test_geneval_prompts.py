"""The metadata schema, one defect at a time, and the grammar that makes prompts of its shape."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from geneval_files import write_prompts

from fgm.data.text.geneval.grammar import article, generate_prompts, plural
from fgm.data.text.geneval.prompts import Clause, Metadata, digest, has_official_counts, parse_metadata, read_prompts
from fgm.data.text.geneval.vocabulary import COLOURS, OBJECTS, PROMPTS_PER_TAG, RELATIONS, Vocabulary
from fgm.utils.errors import UserError

DOG = {"class": "dog", "count": 1}
GOOD = {"tag": "single_object", "include": [DOG], "prompt": "a photo of a dog"}


def test_the_official_form_is_read_and_written_letter_by_letter() -> None:
    lines = """\
{"tag": "counting", "include": [{"class": "cup", "count": 3}], "exclude": [{"class": "cup", "count": 4}], "prompt": "x"}
{"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}], \
"prompt": "a photo of a tie above a dog"}
{"tag": "colors", "include": [{"class": "orange", "count": 1, "color": "orange"}], "prompt": "an orange orange"}
""".splitlines()
    counting, position, colors = (parse_metadata(line, "here") for line in lines)
    assert [metadata.line() for metadata in (counting, position, colors)] == lines
    assert counting.exclude == (Clause("cup", 4),)
    assert position.include[1] == Clause("tie", position=("above", 0))
    assert colors.include == (Clause("orange", colour="orange"),)


@pytest.mark.parametrize(
    ("defect", "complaint"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[]", "must be a JSON object"),
        ('"dog"', "must be a JSON object"),
        ({"tag": "single_object", "include": [DOG]}, "prompt is missing"),
        ({"include": [DOG], "prompt": "a dog"}, "tag is missing"),
        ({"tag": "single_object", "prompt": "a dog"}, "include is missing"),
        (GOOD | {"tag": "color"}, "unknown tag 'color'; there are single_object"),
        (GOOD | {"tag": ["single_object"]}, "unknown tag"),
        (GOOD | {"prompt": " "}, "prompt must be a text"),
        (GOOD | {"prompt": 7}, "prompt must be a text"),
        (GOOD | {"exlude": [DOG]}, "unknown key 'exlude'; there are exclude, include, prompt, tag"),
        (GOOD | {"include": []}, "include is empty"),
        (GOOD | {"include": DOG}, "include must be a list"),
        (GOOD | {"include": None}, "include must be a list"),
        (GOOD | {"include": ["dog"]}, "include[0]: must be a JSON object"),
        (GOOD | {"include": [{"class": "dog"}]}, "include[0]: count is missing"),
        (GOOD | {"include": [{"count": 1}]}, "include[0]: class is missing"),
        (GOOD | {"include": [DOG, DOG | {"class": "mouse"}]}, "include[1]: unknown class 'mouse'"),
        (GOOD | {"include": [DOG | {"count": 0}]}, "include[0]: count = 0 must be"),
        (GOOD | {"include": [DOG | {"count": 1.0}]}, "include[0]: count = 1.0 must be"),
        (GOOD | {"include": [DOG | {"count": True}]}, "include[0]: count = True must be"),
        (GOOD | {"include": [DOG | {"colour": "red"}]}, "include[0]: unknown key 'colour'; there are class, color"),
        (GOOD | {"include": [DOG | {"color": "grey"}]}, "include[0]: unknown color 'grey'; there are red"),
        (GOOD | {"include": [DOG | {"position": "left of"}]}, "include[0]: position = 'left of' must be"),
        (GOOD | {"include": [DOG, DOG | {"position": ["left of", "0"]}]}, "include[1]: position = ['left of', '0']"),
        (GOOD | {"include": [DOG, DOG | {"position": ["beside", 0]}]}, "include[1]: unknown relation 'beside'"),
        (GOOD | {"include": [DOG | {"position": ["above", 0]}]}, "include[0]: position names clause 0"),
        (GOOD | {"include": [DOG, DOG | {"position": ["above", -1]}]}, "include[1]: position names clause -1"),
        (GOOD | {"exclude": DOG}, "exclude must be a list"),
        (GOOD | {"exclude": [DOG | {"color": "red"}]}, "exclude[0]: unknown key 'color'; there are class, count"),
        (GOOD | {"prompt": "a photo of a cat"}, "the prompt 'a photo of a cat' stands there twice"),
    ],
)
def test_a_defect_is_one_line_with_its_number(tmp_path: Path, defect: object, complaint: str) -> None:
    path = tmp_path / "metadata.jsonl"
    bad = defect if isinstance(defect, str) else json.dumps(defect)
    path.write_text(json.dumps(GOOD | {"prompt": "a photo of a cat"}) + "\n" + bad + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2")) as refusal:
        read_prompts(path)
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_missing_an_empty_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is missing: it should hold prompts, as prompts/evaluation_metadata\.jsonl"):
        read_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="is missing"):
        read_prompts(tmp_path)
    for content, complaint in ((b"", "is empty"), (b" \n\n", "is empty"), (b"\xff\xfe{", "is not UTF-8 text")):
        (tmp_path / "file.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            read_prompts(tmp_path / "file.jsonl")


def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path, line = tmp_path / "file.jsonl", json.dumps(GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\n".encode())
    assert [metadata.prompt for metadata in read_prompts(path)] == [GOOD["prompt"]]
    path.write_text(line.replace("a photo", "a\u2028photo"), encoding="utf-8")
    assert read_prompts(path)[0].prompt == "a\u2028photo of a dog"


def test_another_world_has_its_own_words() -> None:
    line = Metadata("shapes", "a photo of a red circle", (Clause("circle", colour="red"),)).line()
    assert parse_metadata(line, "here", Vocabulary(("circle",), ("red",), ("shapes",))).line() == line
    with pytest.raises(UserError, match="unknown tag"):
        parse_metadata(line, "here")


def test_the_vocabulary_is_coco_with_three_longer_names() -> None:
    assert len(OBJECTS) == len(set(OBJECTS)) == 80 and len(set(COLOURS)) == 10
    assert OBJECTS[64:67] == ("computer mouse", "tv remote", "computer keyboard")
    assert [OBJECTS.index(name) for name in ("person", "stop sign", "elephant", "tennis racket", "toothbrush")] == [
        0,
        11,
        20,
        38,
        79,
    ]


@pytest.fixture(scope="module")
def prompts() -> list[Metadata]:
    return generate_prompts(seed=43)


def test_the_grammar_makes_as_many_prompts_as_the_official_file(prompts: list[Metadata]) -> None:
    assert Counter(metadata.tag for metadata in prompts) == PROMPTS_PER_TAG
    assert has_official_counts(prompts) and len(prompts) == 553
    assert not has_official_counts(prompts[:-1])
    assert list(dict.fromkeys(metadata.tag for metadata in prompts)) == list(PROMPTS_PER_TAG)


def test_its_prompts_are_distinct_and_a_pure_function_of_the_seed(prompts: list[Metadata]) -> None:
    assert len({metadata.prompt for metadata in prompts}) == 553
    assert generate_prompts(seed=43) == prompts
    assert digest(generate_prompts(seed=44)) != digest(prompts)


def test_its_prompts_pass_the_schema(prompts: list[Metadata], tmp_path: Path) -> None:
    write_prompts(tmp_path / "own.jsonl", prompts)
    assert read_prompts(tmp_path / "own.jsonl") == prompts


def test_each_tag_asks_for_what_its_name_says(prompts: list[Metadata]) -> None:
    by_tag = {tag: [metadata for metadata in prompts if metadata.tag == tag] for tag in PROMPTS_PER_TAG}
    assert {metadata.include[0].cls for metadata in by_tag["single_object"]} == set(OBJECTS)
    assert all(len({clause.cls for clause in m.include}) == 2 for m in by_tag["two_object"] + by_tag["position"])
    assert {m.include[0].count for m in by_tag["counting"]} == {2, 3, 4}
    assert all(m.exclude == (Clause(m.include[0].cls, m.include[0].count + 1),) for m in by_tag["counting"])
    assert {m.include[1].position for m in by_tag["position"]} == {(relation, 0) for relation in RELATIONS}
    coloured = by_tag["colors"] + by_tag["color_attr"]
    assert {clause.colour for m in coloured for clause in m.include} == set(COLOURS)
    assert all(clause.cls != "person" for m in coloured for clause in m.include)
    assert all(len({clause.colour for clause in m.include}) == len(m.include) for m in coloured)
    assert not any(m.exclude for m in prompts if m.tag != "counting")


@pytest.mark.parametrize("tag", PROMPTS_PER_TAG)
def test_the_sentence_follows_from_the_clauses(prompts: list[Metadata], tag: str) -> None:
    numbers = {2: "two", 3: "three", 4: "four"}
    for m in (m for m in prompts if m.tag == tag):
        nouns = [article(f"{clause.colour} {clause.cls}" if clause.colour else clause.cls) for clause in m.include]
        if tag == "counting":
            words = f"{numbers[m.include[0].count]} {plural(m.include[0].cls)}"
        elif tag == "position":
            words = f"{nouns[1]} {m.include[1].position[0]} {nouns[0]}"
        else:
            words = " and ".join(nouns)
        assert m.prompt == f"a photo of {words}"


def test_articles_and_plurals_are_naive() -> None:
    assert [article(name) for name in ("umbrella", "hot dog", "orange car")] == [
        "an umbrella",
        "a hot dog",
        "an orange car",
    ]
    assert [plural(name) for name in ("bus", "sandwich", "skis")] == ["buses", "sandwichs", "skises"]
