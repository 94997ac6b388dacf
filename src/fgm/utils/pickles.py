"""Pickles of other projects, read without executing anything in them.

A pickle reaches code only by naming it. Here every name is looked up in a table of plain containers, arrays and tensors,
and any other name is an error: nothing is imported, and no function of the file's choice is called. Storages of tensors
are files of torch.save inside the pickle and are read with weights_only.
"""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy
import torch
from numpy._core import multiarray

from fgm.utils.errors import UserError, first_line

UNREADABLE = (pickle.UnpicklingError, RuntimeError, LookupError, EOFError, AttributeError, TypeError, ValueError)
"""Errors of load_tensors, and of reading a state dict that has another form than expected."""


def load_tensors(file: Path | IO[bytes], mmap: bool = False) -> Any:
    """Load a file of torch.save into host memory, weights only.

    Raises:
        One of UNREADABLE: the file is damaged, or has more than tensors and plain containers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # precedes the error about the same file
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": lambda text, encoding="utf-8": text.encode(encoding),  # bytes in protocol 2
}
ARRAYS: dict[str, Callable[..., Any]] = {
    **{f"{core}.multiarray.{name}": getattr(multiarray, name)
       for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")},
    "numpy.ndarray": numpy.ndarray,
    "numpy.dtype": numpy.dtype,
}  # fmt: skip
TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch.storage._load_from_bytes": lambda content: load_tensors(BytesIO(content)),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves names by a table and raises UserError for every other name."""

    def __init__(self, stream: IO[bytes], allowed: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(stream, **options)
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise UserError(full)
        return self.allowed[full]

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("a persistent id")


def read_pickle(
    stream: IO[bytes], path: Path | str, allowed: Mapping[str, Callable[..., Any]], encoding: str = "ASCII"
) -> Any:
    """Return the object in stream.

    Args:
        stream, path: the pickle, and its name in messages.
        allowed: the meaning of the names in it.
        encoding: of strings from Python 2.

    Raises:
        UserError: it names anything else, or is damaged.
    """
    try:
        return RestrictedUnpickler(stream, allowed, encoding=encoding).load()
    except UserError as error:
        raise UserError(
            f"{path}: names {error}, and only arrays, tensors and plain containers are read; nothing in it was run"
        ) from None
    except Exception as error:  # nearly any, for a damaged pickle
        raise UserError(
            f"{path}: is no complete pickle ({type(error).__name__}: {first_line(error)}); fetch it again"
        ) from None
