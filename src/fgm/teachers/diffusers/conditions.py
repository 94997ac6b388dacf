"""Encoded prompts of any family, by index: a file of encodings, and the batches that a transformer takes.

    FILE.safetensors     "<i>.<name>" for prompt i, each without a batch axis: 0.prompt_embeds (tokens, width), ...

Prompt 0 is the null condition of guidance, usually the empty prompt. Names are those of the pipeline's arguments.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from fgm.utils.errors import UserError, first_line

Condition = Mapping[str, Any]  # name -> (n, ...), or a list of n tensors


class EncodedPrompts(nn.Module):
    """Prompt indices (n,) int64 -> a condition of n prompts on the indices' device. No weights: copies share it.

    Args:
        rows: one for each prompt, all with the same names.
    """

    def __init__(self, rows: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        if not rows or any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError("encoded prompts: give at least the null prompt, and the same names for each prompt")
        self.rows, self.names = list(rows), set(rows[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def forward(self, indices: Tensor) -> dict[str, list[Tensor]]:
        chosen = [self.rows[i] for i in indices.tolist()]
        return {name: [row[name].to(indices.device) for row in chosen] for name in self.rows[0]}


def load_prompts(file: str) -> EncodedPrompts:
    """Read a file of encoded prompts.

    Raises:
        UserError: it is missing, damaged or incomplete.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: no file of encoded prompts ({first_line(error)}); see docs/teachers.md") from error
    rows: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, part = name.partition(".")
        if not number.isdecimal() or not part:
            raise UserError(f"{file}: {name!r} is not <prompt's number>.<name>; see docs/teachers.md")
        rows.setdefault(int(number), {})[part] = tensor
    if sorted(rows) != list(range(len(rows))) or any(row.keys() != rows[0].keys() for row in rows.values()):
        raise UserError(f"{file}: prompts must be numbered from 0, without gaps, and all have the same names")
    return EncodedPrompts([rows[i] for i in range(len(rows))])


def save_prompts(rows: Sequence[Mapping[str, Tensor]], file: Path | str) -> None:
    """Write encodings, the null prompt's first; see load_prompts."""
    save_file({f"{i}.{name}": x.contiguous().cpu() for i, row in enumerate(rows) for name, x in row.items()}, file)


def batched(name: str, parts: Any, masked: bool) -> Tensor:
    """Return one tensor (n, ...) of a tensor or of a list of n.

    Raises:
        ValueError: parts have several lengths, and no mask says which tokens are padding.
    """
    if isinstance(parts, Tensor):
        return parts
    longest = max(len(part) for part in parts)
    if not masked and any(len(part) != longest for part in parts):
        raise ValueError(f"{name} has several lengths and no mask: pad encodings to one length, as the pipeline does")
    return torch.stack([pad(part, (0, 0) * (part.ndim - 1) + (0, longest - len(part))) for part in parts])
