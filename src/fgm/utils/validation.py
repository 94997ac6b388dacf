"""Types, choices and ranges of arguments, stated once at the annotation and checked from Python and from YAML alike.

    t_star: Annotated[float, Field(gt=0, le=1)]        pydantic's ranges; PositiveInt and the like are its shorthands
    c_in: Literal["one", "t_star", "variance"]         a choice

Scalars are strict (3.0 is no int, "3" and true are no number) and finite, unless a Field says allow_inf_nan=True.
Only annotations built from int, float, str, bool, None, Literal, list, tuple and Sequence are checked.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError

from fgm.utils.errors import UserError

T = TypeVar("T", bound=Callable[..., Any])
SCALARS = (int, float, str, bool)
FINITE = ConfigDict(allow_inf_nan=False)


class InvalidValueError(UserError, ValueError):
    """An argument whose type or value its annotation does not allow."""


def validated(target: T) -> T:
    """Check the arguments of a function, or of a class's constructor, against their annotations at every call.

    Values reach the target unchanged.

    Raises:
        InvalidValueError: at the call; one line that names the argument, its value and what is allowed.
    """
    if isinstance(target, type):
        if "__init__" in vars(target):
            target.__init__ = checked(target.__init__, target.__name__)  # type: ignore[misc]
        return target
    return checked(target, target.__name__)


def checked(function: Any, name: str) -> Any:
    signature = inspect.signature(function)

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for key, value in signature.bind_partial(*args, **kwargs).arguments.items():
            problem = complaint(signature.parameters[key].annotation, value)
            if problem:
                raise InvalidValueError(f"{name}: {key} = {value}: {problem}")
        return function(*args, **kwargs)

    return wrapper


def complaint(annotation: Any, value: Any) -> str | None:
    """Return what is wrong with a value, or None. Annotations of other kinds accept everything."""
    adapter = adapter_of(annotation)
    if adapter is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | list | tuple):
        value = list(value)  # OmegaConf's ListConfig
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return requirement(annotation, value) or error.errors()[0]["msg"]
    return None


@cache
def adapter_of(annotation: Any) -> TypeAdapter[Any] | None:
    strict = strict_type(annotation)
    return None if strict is None else TypeAdapter(strict, config=FINITE)


def strict_type(annotation: Any) -> Any:
    """Return the annotation with strict scalars, or None if it holds anything but plain values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in SCALARS:
        return Annotated[annotation, Strict()]
    if annotation in (None, NoneType):
        return NoneType
    if origin is Literal:
        return annotation
    if origin is Annotated:
        inner = strict_type(arguments[0])
        return inner and Annotated[(inner, *arguments[1:])]
    if origin in (Union, UnionType, list, tuple, Sequence):
        inner = [each if each is Ellipsis else strict_type(each) for each in arguments]
        return None if None in inner else Union[tuple(inner)] if origin is UnionType else origin[tuple(inner)]  # noqa: UP007  # type: ignore[invalid-annotation]
    return None


def requirement(annotation: Any, value: Any = None) -> str:
    """Say in words what an annotation allows; of several types, what those of the value's type allow."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in SCALARS:
        finite = annotation is float and isinstance(value, float)
        return "must be finite" if finite else f"must be of type {annotation.__name__}"
    if origin is Literal:
        return f"must be one of {', '.join(map(str, arguments))}"
    if origin is Annotated:
        of_type = (arguments[0] is float and isinstance(value, float)) or not complaint(arguments[0], value)
        return f"must lie in {interval(*arguments)}" if of_type else requirement(arguments[0], value)
    if origin in (Union, UnionType):
        others = [requirement(each, value) for each in arguments if each is not NoneType]
        return " or ".join(dict.fromkeys(others)) + (" or be null" if NoneType in arguments else "")
    if origin in (list, tuple, Sequence) and not isinstance(value, Sequence):
        return "must be a list"
    return ""


def interval(number: type, *metadata: Any) -> str:
    """Write pydantic's bounds as in mathematics, (0, 1]; of an int the lower one as the least value, [1, inf)."""
    bounds: dict[str, Any] = {}
    for part in metadata:
        for each in getattr(part, "metadata", [part]):
            bounds |= {key: getattr(each, key) for key in ("gt", "ge", "lt", "le") if hasattr(each, key)}
    if number is int and "gt" in bounds:
        bounds["ge"] = bounds["gt"] + 1
    low = f"[{bounds['ge']}" if "ge" in bounds else f"({bounds.get('gt', '-inf')}"
    return low + ", " + (f"{bounds['le']}]" if "le" in bounds else f"{bounds.get('lt', 'inf')})")
