"""Structs of tensors that share their first axis: n things, held column by column."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Base of dataclasses whose fields are tensors (n, ...) or Rows of length n."""

    def columns(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        return len(self.columns()[0])

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return type(self)(*(column[rows] for column in self.columns()))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        columns = zip(*(part.columns() for part in parts), strict=True)
        return cls(*(torch.cat(c) if isinstance(c[0], Tensor) else type(c[0]).join(c) for c in columns))
