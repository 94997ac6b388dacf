"""GenEval's prompts are read exactly as written, and every defect of a file is one line that names its place."""

import json
import re
from pathlib import Path

import pytest
from geneval_files import example_prompts, write_prompts

from fgm.data.geneval import (
    COLORS,
    OBJECTS,
    PROMPTS_PER_TAG,
    Clause,
    Metadata,
    Vocabulary,
    digest,
    has_official_counts,
    parse_metadata,
    read_prompts,
)
from fgm.utils.errors import UserError

DOG = {"class": "dog", "count": 1}
GOOD = {"tag": "single_object", "include": [DOG], "prompt": "a photo of a dog"}


def test_official_lines_roundtrip_character_by_character() -> None:
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
    assert colors.include == (Clause("orange", color="orange"),)


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ({"tag": "single_object", "include": [DOG]}, "prompt is missing"),
        (GOOD | {"tag": "color"}, "unknown tag 'color'; did you mean colors?"),
        (GOOD | {"tag": ["single_object"]}, "unknown tag"),
        (GOOD | {"prompt": " "}, "prompt must be a text with something to see"),
        (GOOD | {"prompt": 7}, "prompt must be a text with something to see"),
        (GOOD | {"exlude": [DOG]}, "unknown key 'exlude'; the keys are exclude, include, prompt, tag"),
        (GOOD | {"include": []}, "include is empty"),
        (GOOD | {"include": DOG}, "include must be a list"),
        (GOOD | {"include": ["dog"]}, "include[0]: must be a JSON object"),
        (GOOD | {"include": [{"class": "dog"}]}, "include[0]: count is missing"),
        (GOOD | {"include": [DOG, DOG | {"class": "mouse"}]}, "include[1]: unknown class 'mouse'"),
        (GOOD | {"include": [DOG | {"count": 0}]}, "include[0]: count = 0 must be"),
        (GOOD | {"include": [DOG | {"count": 1.0}]}, "include[0]: count = 1.0 must be"),
        (GOOD | {"include": [DOG | {"count": True}]}, "include[0]: count = True must be"),
        (GOOD | {"include": [DOG | {"colour": "red"}]}, "include[0]: unknown key 'colour'; the keys are class, color"),
        (GOOD | {"include": [DOG | {"color": "grey"}]}, "include[0]: unknown color 'grey'; did you mean green?"),
        (GOOD | {"include": [DOG | {"position": "left of"}]}, "include[0]: position = 'left of' must be"),
        (GOOD | {"include": [DOG, DOG | {"position": ["left of", "0"]}]}, "include[1]: position = ['left of', '0']"),
        (GOOD | {"include": [DOG, DOG | {"position": ["beside", 0]}]}, "include[1]: unknown relation 'beside'"),
        (GOOD | {"include": [DOG | {"position": ["above", 0]}]}, "include[0]: position refers to clause 0"),
        (GOOD | {"include": [DOG, DOG | {"position": ["above", -1]}]}, "include[1]: position refers to clause -1"),
        (GOOD | {"exclude": [DOG | {"color": "red"}]}, "exclude[0]: unknown key 'color'; the keys are class, count"),
        (GOOD | {"prompt": "a photo of a cat"}, "the prompt 'a photo of a cat' is a duplicate"),
    ],
)
def test_defective_line_is_named_by_its_number(tmp_path: Path, defect: object, message: str) -> None:
    path = tmp_path / "metadata.jsonl"
    bad = defect if isinstance(defect, str) else json.dumps(defect)
    path.write_text(json.dumps(GOOD | {"prompt": "a photo of a cat"}) + "\n" + bad + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2")) as error:
        read_prompts(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b" \n\n", "is empty"), (b"\xff\xfe{", "UTF-8")])
def test_empty_and_binary_files_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / "file.jsonl")
    with pytest.raises(UserError, match=r"is missing: it should hold prompts, as prompts/evaluation_metadata\.jsonl"):
        read_prompts(tmp_path / "nowhere.jsonl")


def test_line_endings_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path, line = tmp_path / "file.jsonl", json.dumps(GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\n".encode())
    assert [metadata.prompt for metadata in read_prompts(path)] == [GOOD["prompt"]]
    path.write_text(line.replace("a photo", "a\u2028photo"), encoding="utf-8")
    assert read_prompts(path)[0].prompt == "a\u2028photo of a dog"


def test_vocabulary_decides_what_is_known() -> None:
    line = Metadata("shapes", "a photo of a red circle", (Clause("circle", color="red"),)).line()
    assert parse_metadata(line, "here", Vocabulary(("circle",), ("red",), ("shapes",))).line() == line
    with pytest.raises(UserError, match="unknown tag"):
        parse_metadata(line, "here")


def test_objects_are_cocos_in_order_with_three_longer_names() -> None:
    assert len(OBJECTS) == len(set(OBJECTS)) == 80 and len(set(COLORS)) == 10
    assert OBJECTS[64:67] == ("computer mouse", "tv remote", "computer keyboard")
    names = ("person", "stop sign", "elephant", "tennis racket", "toothbrush")
    assert [OBJECTS.index(name) for name in names] == [0, 11, 20, 38, 79]


def test_prompts_are_identified_by_counts_and_digest(tmp_path: Path) -> None:
    prompts = example_prompts(PROMPTS_PER_TAG)
    assert len(prompts) == 553 and has_official_counts(prompts) and not has_official_counts(prompts[:-1])
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    assert read_prompts(tmp_path / "prompts.jsonl") == prompts
    assert digest(prompts) == digest(list(prompts)) != digest(prompts[::-1])
