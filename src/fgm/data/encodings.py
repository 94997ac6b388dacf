"""Prompts encoded once by Stable Diffusion 3's text encoders (arXiv 2403.03206), and the cache that training reads.

    DIRECTORY/index.json               what CacheIndex holds; written last, so that it marks a complete cache
              00000.safetensors, ...   shard_size prompts each, and the cache's digest in the header's metadata

    clip      (n, 77, w_1 + w_2)       both CLIPs' last hidden layer but one, side by side
    t5        (n, max_length, w)       T5's output; without T5 the network reads zeros
    pooled    (n, p_1 + p_2)           both CLIPs' projections

A network reads clip, padded with zeros to T5's width, followed by t5 along the tokens: the pipeline's prompt_embeds.
Prompt 0 is the empty one, which guidance needs; then come the prompts to train on, and then those that only an evaluation
uses. The digest is a hash of prompts, encoders, lengths and dtype: shards of another digest are never read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from pydantic import PositiveInt
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import pad

from fgm.utils.errors import UserError
from fgm.utils.files import damage_of
from fgm.utils.pipelines import require_parts
from fgm.utils.pretrained import fingerprint, locate, weight_files
from fgm.utils.validation import validated

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
CLIP_LENGTH = 77
INDEX = "index.json"


class PromptSource(Protocol):
    def read(self) -> list[str]:
        """Return the prompts in their order, without duplicates and empty ones.

        Raises:
            UserError: a file is missing, empty or malformed.
        """
        ...


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds.

    Attributes:
        prompts: the empty one first.
        encoders: fingerprints of the encoders that made it.
        max_length: T5's tokens.
        dtype: dtype of encoders and cache.
        shard_size: prompts per shard.
        truncated: number of prompts that were too long, by encoder; not part of the digest.
        widths: of words and pooled; not part of the digest.
    """

    prompts: list[str]
    encoders: dict[str, str]
    max_length: int
    dtype: str
    shard_size: int
    truncated: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("truncated", "widths")}

    @cached_property
    def digest(self) -> str:
        return sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shards(self) -> int:
        return -(-len(self.prompts) // self.shard_size)

    @classmethod
    def from_file(cls, file: Path) -> Self:
        try:
            row = json.loads(file.read_text())
            return cls(**{one.name: row[one.name] for one in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not an index of encoded prompts; remove it and run make cache-prompts") from error


@validated
@dataclass(frozen=True)
class PromptCache:
    """Which prompts are encoded by which encoders, and where.

    Args:
        prompts: the prompts to train on.
        directory: of the cache.
        model: a diffusers directory or a hub id that has the encoders; T5 may be missing.
        max_length: T5's tokens; 256, the pipeline's, takes 2.4 MB a prompt in bfloat16, and 77 takes 0.95 MB.
        dtype: dtype of encoders and cache.
        shard_size: prompts per shard.
        extra_prompts: prompts for evaluation only.
    """

    prompts: PromptSource
    directory: str
    model: str
    max_length: PositiveInt = 256
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    shard_size: PositiveInt = 512
    extra_prompts: PromptSource | None = None

    def plan(self) -> CacheIndex:
        """Return the index of the cache that is to be made.

        Raises:
            UserError: no prompts, or a CLIP is missing.
        """
        require_parts(self.model, ENCODERS[:2])
        return self.index_by(self.encoders())

    def read_index(self) -> CacheIndex:
        """Return the index of a complete cache of these prompts by these encoders, without reading tensors.

        Encoders that are not on this machine may have made it elsewhere.

        Raises:
            UserError: the cache is missing, incomplete, or another one.
        """
        file = Path(self.directory) / INDEX
        if not file.is_file():
            self.prompts.read()
            raise UserError(f"{self.directory}: no encoded prompts; run make cache-prompts with the same EXP and ARGS")
        index = CacheIndex.from_file(file)
        here = {name: print_ for name, print_ in self.encoders().items() if name in index.encoders}
        expected = self.index_by(index.encoders | here).identity
        wrong = [key for key, value in index.identity.items() if expected[key] != value]
        if wrong:
            raise UserError(
                f"{self.directory}: prompts encoded with other {', '.join(wrong)}; "
                "give data.cache.directory=<another>, or remove it, and run make cache-prompts"
            )
        for number in range(index.shards):
            if not self.has_shard(number, index.digest):
                raise UserError(
                    f"{self.shard(number)}: missing or from another cache; remove {file}, run make cache-prompts"
                )
        return index

    def index_by(self, encoders: dict[str, str]) -> CacheIndex:
        extra = self.extra_prompts.read() if self.extra_prompts else []
        prompts = list(dict.fromkeys(["", *self.prompts.read(), *extra]))
        return CacheIndex(prompts, encoders, self.max_length, self.dtype, self.shard_size)

    def encoders(self) -> dict[str, str]:
        """Return fingerprints of the encoders on this machine.

        Raises:
            UserError: an encoder's folder lacks weights, or one of their shards.
        """
        found = {}
        for name in ENCODERS:
            folder = locate(self.model) / name
            files = weight_files(folder)
            if folder.is_dir() and not files:
                raise UserError(
                    f"{folder}: weights are missing or incomplete; download them again, or remove the folder"
                )
            if files:
                found[name] = fingerprint(files)
        return found

    def shard(self, number: int) -> Path:
        return Path(self.directory) / f"{number:05d}.safetensors"

    def has_shard(self, number: int, digest: str) -> bool:
        path = self.shard(number)
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get("digest") == digest
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: damaged ({damage_of(path, error)}); remove it and run make cache-prompts"
            ) from error


@validated
class CachedText(nn.Module):
    """Prompt indices (n,) int64 -> words (n, 77 + max_length, width) and pooled (n, width), on the indices' device.

    It has no weights and no state; copies of a network share it.

    Args:
        cache: a complete cache.

    Raises:
        UserError: the cache is missing, incomplete, or another one.
    """

    def __init__(self, cache: PromptCache) -> None:
        super().__init__()
        self.cache, self.index = cache, cache.read_index()
        self.shards: dict[int, dict[str, Tensor]] = {}
        self.preloaded: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if self.preloaded is None:
            distinct, places = indices.unique(return_inverse=True)
            words, pooled = self.read(distinct)
        else:
            distinct, words, pooled, wrong = self.preloaded
            places = torch.searchsorted(distinct, indices).clamp_max(len(distinct) - 1)
            wrong.logical_or_((distinct[places] != indices).any())
        return words[places], pooled[places]

    @contextmanager
    def preload(self, indices: Tensor) -> Iterator[None]:
        """Keep the encodings of these prompts and of the empty one on their device, to wait for the disk only once.

        Raises:
            IndexError: another prompt was read within.
        """
        distinct = torch.cat([indices, indices.new_zeros(1)]).unique()
        self.preloaded = distinct, *self.read(distinct), torch.zeros((), dtype=torch.bool, device=indices.device)
        try:
            yield
            if bool(self.preloaded[3]):
                raise IndexError("a prompt was read that is not preloaded")
        finally:
            self.preloaded = None

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Read encodings from the shards, which are memory-mapped."""
        rows = [self.row(i) for i in indices.tolist()]
        encoded = {name: torch.stack([row[name] for row in rows]).to(indices.device) for name in rows[0]}
        width = self.index.widths["words"]
        clip = pad(encoded["clip"], (0, width - encoded["clip"].shape[-1]))
        t5 = encoded.get("t5", clip.new_zeros(len(clip), self.index.max_length, width))
        return torch.cat([clip, t5], 1), encoded["pooled"]

    def row(self, i: int) -> dict[str, Tensor]:
        if not 0 <= i < len(self.index.prompts):
            raise IndexError(f"prompt {i} of {len(self.index.prompts)}")
        number, place = divmod(i, self.index.shard_size)
        if number not in self.shards:
            with safe_open(self.cache.shard(number), "pt") as file:
                self.shards[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: tensor[place] for name, tensor in self.shards[number].items()}
