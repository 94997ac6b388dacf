"""Annotations hold from Python: types are strict, ranges and choices as pydantic defines them, values unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field, PositiveFloat, PositiveInt

from fgm.utils.errors import UserError
from fgm.utils.validation import validated

Unit = Annotated[float, Field(gt=0, le=1)]
CASES: list[tuple[Any, Any, str | None]] = [
    (Unit, 1, None),
    (Unit, 0, r"must lie in \(0, 1\]"),
    (Unit, 1.5, r"must lie in \(0, 1\]"),
    (Unit, "0.5", "must be of type float"),
    (Unit, nan, r"must lie in \(0, 1\]"),
    (Annotated[float, Field(ge=0, lt=1)], 1, r"must lie in \[0, 1\)"),
    (Annotated[float, Field(gt=0, allow_inf_nan=True)], inf, None),
    (float, nan, "must be finite"),
    (PositiveFloat, inf, r"must lie in \(0, inf\)"),
    (PositiveInt, 0, r"must lie in \[1, inf\)"),
    (PositiveInt, 1.0, "must be of type int"),
    (PositiveInt, True, "must be of type int"),
    (PositiveInt | None, None, None),
    (PositiveInt | None, "x", "must be of type int or be null"),
    (PositiveInt | Literal["auto"], "auto", None),
    (Literal["a", "b"], "c", "must be one of a, b"),
    (bool, "false", "must be of type bool"),
    (Sequence[int], 2, "must be a list"),
    (Sequence[int], OmegaConf.create([1, 2]), None),
    (tuple[int, ...], [1, "x"], "integer"),
    (dict[str, int], "anything", None),
]


@pytest.mark.parametrize("annotation, value, message", CASES)
def test_a_value_passes_or_is_one_line(annotation: Any, value: Any, message: str | None) -> None:
    def call(key: Any) -> Any:
        return key

    call.__annotations__["key"] = annotation
    if message is None:
        assert validated(call)(value) is value
        return
    with pytest.raises(UserError, match=message) as refused:
        validated(call)(key=value)
    assert isinstance(refused.value, ValueError)
    assert str(refused.value).startswith("call: key = ") and "\n" not in str(refused.value)


def test_constructors_of_dataclasses_and_their_heirs_are_checked() -> None:
    @validated
    @dataclass(frozen=True)
    class Density:
        std: PositiveFloat = 1.0

    class Narrow(Density):
        pass

    for kind in (Density, Narrow):
        assert kind(2.0).std == 2.0
        with pytest.raises(UserError, match="Density: std = -1"):
            kind(std=-1)
