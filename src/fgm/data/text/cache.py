"""Encoded prompts on disk: written shard by shard, each whole or absent, and read by memory mapping."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fgm.data.text.encoders import TextEncoders, assemble
from fgm.data.text.index import Index, PromptCache, write_index
from fgm.utils.errors import UserError
from fgm.utils.files import replacing
from fgm.utils.pretrained import locate
from fgm.utils.validation import validated

Progress = Callable[[int], None]  # told how many prompts are done


def encoders_of(index: Index, model: str, device: str = "cpu") -> TextEncoders:
    return TextEncoders(locate(model), list(index.encoders), index.max_length, getattr(torch, index.dtype), device)


def write_cache(cache: PromptCache, index: Index, encoders: TextEncoders, batch: int, progress: Progress) -> Index:
    """The shards that are not there yet, then the index, which tells how many prompts were too long."""
    Path(cache.directory).mkdir(parents=True, exist_ok=True)
    for number in range(index.shards):
        prompts = index.prompts[number * index.shard_size : (number + 1) * index.shard_size]
        if not cache.holds(number, index.digest):
            write_shard(cache.shard(number), prompts, index.digest, encoders, batch)
        progress(number * index.shard_size + len(prompts))
    widths = {"words": encoders.width, "pooled": encoders.pooled_width}
    whole = replace(index, truncated=encoders.truncated(index.prompts), widths=widths)
    write_index(cache, whole)
    return whole


def write_shard(path: Path, prompts: list[str], digest: str, encoders: TextEncoders, batch: int) -> None:
    """
    Raises:
        UserError: an encoder gives values that are not finite.
    """
    parts = [encoders(prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} is not finite; try data.cache.dtype=float32")
    with replacing(path, shared=True) as temporary:
        save_file(tensors, temporary, metadata={"digest": digest})


@validated
class CachedText(nn.Module):
    """Prompt indices (n,) int64 -> words (n, tokens, width) and pooled (n, width), on the indices' device.

    It has no weights and no state: copies of a network share it, and the pages that it maps are the system's cache.

    Args:
        cache: a whole one.

    Raises:
        UserError: the cache is missing, cut short, or another one.
    """

    def __init__(self, cache: PromptCache) -> None:
        super().__init__()
        self.cache, self.index = cache, cache.require()
        self.shards: dict[int, dict[str, Tensor]] = {}
        self.held: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if self.held is None:
            distinct, places = indices.unique(return_inverse=True)
            words, pooled = self.read(distinct)
        else:
            distinct, words, pooled, wrong = self.held
            places = torch.searchsorted(distinct, indices).clamp_max(len(distinct) - 1)
            wrong.logical_or_((distinct[places] != indices).any())
        return words[places], pooled[places]

    def read(self, distinct: Tensor) -> tuple[Tensor, Tensor]:
        """Waits for the indices, and for the system to read their pages."""
        rows = [self.row(i) for i in distinct.tolist()]
        encoded = {name: torch.stack([row[name] for row in rows]).to(distinct.device) for name in rows[0]}
        return assemble(encoded, self.index.widths["words"], self.index.max_length)

    @contextmanager
    def holding(self, indices: Tensor) -> Iterator[None]:
        """These prompts and the empty one are read once, and stay on their device in here; no other may be asked for.

        Raises:
            IndexError: another one was.
        """
        distinct = torch.cat([indices, indices.new_zeros(1)]).unique()
        self.held = distinct, *self.read(distinct), torch.zeros((), dtype=torch.bool, device=indices.device)
        try:
            yield
            if bool(self.held[3]):
                raise IndexError("a prompt was asked for that is not held")
        finally:
            self.held = None

    def row(self, i: int) -> dict[str, Tensor]:
        """
        Raises:
            IndexError: there is no such prompt.
        """
        if not 0 <= i < len(self.index.prompts):
            raise IndexError(f"prompt {i} of {len(self.index.prompts)}")
        number, place = divmod(i, self.index.shard_size)
        if number not in self.shards:
            with safe_open(self.cache.shard(number), "pt") as file:
                self.shards[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: tensor[place] for name, tensor in self.shards[number].items()}
