"""Prompts are read once and in their order, and a file without any is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from fgm.data.text.shapes.vocabulary import encode
from fgm.data.text.sources import GenEvalMetadata, JsonLines, ShapesGrammar, TextFile
from fgm.utils.errors import UserError


def test_every_source_reads_its_prompts_once_and_in_order(tmp_path: Path) -> None:
    text, lines, metadata = (tmp_path / name for name in ("a.txt", "a.jsonl", "metadata.jsonl"))
    text.write_text("a cat\n\n  a dog \na cat\n")
    lines.write_text('{"prompt": "a cat", "id": 1}\n{"prompt": "a dog"}\n')
    clause = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
    metadata.write_text(json.dumps(clause) + "\n")
    assert TextFile(str(text)).read() == JsonLines(str(lines)).read() == ["a cat", "a dog"]
    assert GenEvalMetadata(str(metadata)).read() == ["a cat"]
    captions = ShapesGrammar(50).read()
    assert len(set(captions)) == len(captions) > 30 and len(encode(captions)) == len(captions)
    assert captions == ShapesGrammar(50).read() != ShapesGrammar(50, seed=1).read()


@pytest.mark.parametrize("source", [TextFile, JsonLines, GenEvalMetadata])
def test_empty_and_missing_prompt_files_are_refused(source: type[Any], tmp_path: Path) -> None:
    for content in ("", "\n \n"):
        (tmp_path / "prompts").write_text(content)
        with pytest.raises(UserError, match="is empty: it should hold"):
            source(str(tmp_path / "prompts")).read()
    with pytest.raises(UserError, match="is missing: it should hold"):
        source(str(tmp_path / "nowhere")).read()


def test_a_line_without_a_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}\n{"text": "a dog"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: prompt must be a text"):
        JsonLines(str(tmp_path / "a.jsonl")).read()
