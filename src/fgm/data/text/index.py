"""The cache of encoded prompts as a plan on disk; reads no tensor, and needs no torch.

    DIRECTORY/index.json               what Index holds; written last, so that it marks a whole cache
              00000.safetensors, ...   shard_size prompts each; the header's metadata names the cache's digest

Prompt 0 is the empty one, which guidance needs; the source's prompts follow from 1, and behind them those that an
evaluation asks and no training draws. The digest is a hash of prompts, encoders, lengths and dtype: shards of another
digest are never read, and those of the same one are never made again.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PositiveInt

from fgm.data.text.sources import PromptSource
from fgm.utils.errors import UserError
from fgm.utils.files import write_bytes
from fgm.utils.fingerprints import fingerprint, read_header
from fgm.utils.pretrained import locate, remedy, weight_files
from fgm.utils.validation import validated

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
INDEX = "index.json"


@dataclass(frozen=True)
class Index:
    """What a cache holds.

    Attributes:
        prompts: the empty one first.
        encoders: fingerprints of the encoders that made it; the others' places are zeros.
        max_length: T5's tokens.
        dtype: of encoders and cache.
        shard_size: prompts a shard.
        truncated: prompts that were too long, by encoder; told once it is known, and no part of the digest.
        widths: of words and pooled; likewise.
    """

    prompts: list[str]
    encoders: dict[str, str]
    max_length: int
    dtype: str
    shard_size: int
    truncated: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("truncated", "widths")}

    @property
    def shards(self) -> int:
        return -(-len(self.prompts) // self.shard_size)

    @classmethod
    def from_file(cls, file: Path) -> Self:
        try:
            row = json.loads(file.read_text())
            return cls(**{one.name: row[one.name] for one in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is no index of encoded prompts: remove it and make cache-prompts again") from error

    def differences(self, other: Self) -> list[str]:
        told = self.identity()
        return [key for key, value in other.identity().items() if told[key] != value]


@validated
@dataclass(frozen=True)
class PromptCache:
    """Which prompts, encoded by which encoders, lie where.

    Args:
        prompts: their source.
        directory: of the cache.
        model: of the encoders: a diffusers directory or a hub id; without T5, or a CLIP, zeros stand in its place.
        max_length: T5's tokens; 256 is the pipeline's, at 2.4 MB a prompt in bfloat16; 77 takes 0.95 MB.
        dtype: of encoders and cache.
        shard_size: prompts a shard.
        also: prompts that lie behind the others, to be asked and never trained on.
    """

    prompts: PromptSource
    directory: str
    model: str
    max_length: PositiveInt = 256
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    shard_size: PositiveInt = 512
    also: PromptSource | None = None

    def all_prompts(self) -> list[str]:
        """The empty one, those to train on, and those that are only asked."""
        return list(dict.fromkeys(["", *self.prompts.read(), *(self.also.read() if self.also else [])]))

    def planned(self) -> Index:
        """What the cache will hold.

        Raises:
            UserError: no prompts, or no encoder.
        """
        here = self.encoders_here()
        if not here:
            raise UserError(f"{self.model}: no text encoder on this machine; {remedy(self.model)}")
        return Index(self.all_prompts(), here, self.max_length, self.dtype, self.shard_size)

    def encoders_here(self) -> dict[str, str]:
        files = {name: weight_files(locate(self.model) / name) for name in ENCODERS}
        return {name: fingerprint(found) for name, found in files.items() if found}

    def shard(self, number: int) -> Path:
        return Path(self.directory) / f"{number:05d}.safetensors"

    def holds(self, number: int, digest: str) -> bool:
        """Whether a shard is there, whole, and of this cache."""
        path = self.shard(number)
        return path.is_file() and read_header(path)[1].get("digest") == digest

    def require(self) -> Index:
        """The index of a whole cache, made from these prompts by these encoders; cheap.

        Raises:
            UserError: it is missing, cut short, or another one.
        """
        file = Path(self.directory) / INDEX
        if not file.is_file():
            self.prompts.read()
            raise UserError(
                f"{self.directory} holds no encoded prompts: make cache-prompts, with the same EXP and ARGS"
            )
        index = Index.from_file(file)
        self.require_same(index, self.expected(index))
        for number in range(index.shards):
            if not self.holds(number, index.digest):
                raise UserError(
                    f"{self.shard(number)} is missing or of another cache: remove {file} and make cache-prompts"
                )
        return index

    def expected(self, index: Index) -> Index:
        """As the index, where this machine cannot tell: encoders that are not here may have made it elsewhere."""
        here = {name: print_ for name, print_ in self.encoders_here().items() if name in index.encoders}
        encoders = index.encoders | here
        return Index(self.all_prompts(), encoders, self.max_length, self.dtype, self.shard_size)

    def require_same(self, found: Index, expected: Index) -> None:
        wrong = found.differences(expected)
        if wrong:
            raise UserError(
                f"{self.directory} holds prompts encoded otherwise (other {', '.join(wrong)}): "
                f"give data.cache.directory=<another>, or remove it, and make cache-prompts"
            )


def write_index(cache: PromptCache, index: Index) -> None:
    content: dict[str, Any] = asdict(index) | {"digest": index.digest}
    write_bytes(Path(cache.directory) / INDEX, (json.dumps(content, indent=1) + "\n").encode())
