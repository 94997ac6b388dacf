"""Where prompts come from. Each source reads all of its prompts, in their order, every one once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import NonNegativeInt, PositiveInt

from fgm.data.text.geneval.grammar import generate_prompts
from fgm.data.text.geneval.prompts import Metadata, read_prompts
from fgm.data.text.geneval.vocabulary import GENEVAL, GRAMMAR, Vocabulary
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_lines
from fgm.utils.validation import validated


class PromptSource(Protocol):
    def read(self) -> list[str]:
        """At least one prompt, none twice, none empty.

        Raises:
            UserError: a missing, empty or malformed file.
        """
        ...


@validated
@dataclass(frozen=True)
class TextFile:
    """One prompt a line; empty lines are passed over."""

    file: str

    def read(self) -> list[str]:
        lines = read_lines(Path(self.file), "one prompt a line")
        return list(dict.fromkeys(line.strip() for _, line in lines if line.strip()))


@validated
@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line, whose "prompt" is read."""

    file: str

    def read(self) -> list[str]:
        lines = read_lines(Path(self.file), 'a JSON object with "prompt" a line')
        return list(dict.fromkeys(prompt_of(line, where) for where, line in lines if line.strip()))


@validated
@dataclass(frozen=True)
class GenEvalMetadata:
    """The prompts of GenEval's evaluation_metadata.jsonl."""

    file: str

    def read(self) -> list[str]:
        return [metadata.prompt for metadata in read_prompts(Path(self.file))]


@validated
@dataclass(frozen=True)
class Asked:
    """What an evaluation asks and no training draws: GenEval's prompts, or none.

    Args:
        metadata: as GenEvalMetric's; None where the evaluation is another one.
        seed: of our own prompts.
    """

    metadata: str | None = None
    seed: NonNegativeInt = 0

    def read(self) -> list[str]:
        """Maybe none."""
        if self.metadata is None:
            return []
        return [metadata.prompt for metadata in asked_of(self.metadata, self.seed)]


@validated
@dataclass(frozen=True)
class ShapesGrammar:
    """The different ones among n random training captions of the world of shapes."""

    n: PositiveInt = 1000
    seed: NonNegativeInt = 0

    def read(self) -> list[str]:
        from fgm.data.text.shapes.grammar import draw_captions  # torch, needed here alone
        from fgm.utils.random import keyed_generator

        return list(dict.fromkeys(draw_captions(self.n, keyed_generator(self.seed, "prompts", index=0)).prompts()))


def asked_of(metadata: str, seed: int = 0, vocabulary: Vocabulary = GENEVAL) -> list[Metadata]:
    """What a file of metadata asks, or our own grammar where GRAMMAR stands in its place."""
    return generate_prompts(seed) if metadata == GRAMMAR else read_prompts(Path(metadata), vocabulary)


def prompt_of(line: str, where: str) -> str:
    prompt = parse_object(line, where).get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: prompt must be a text that is not empty")
    return prompt.strip()
