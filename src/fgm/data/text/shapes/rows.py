"""Structs of tensors that share their first axis: n things, held column by column."""

from dataclasses import dataclass, fields
from typing import Any, Self

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
