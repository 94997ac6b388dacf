"""Pickles of other projects, read without executing anything in them.

A pickle is a program whose only way to reach code is to name a global. Here a name stands for what a table admits
under it, plain containers, arrays and tensors, and every other name is refused, so that no import is made and no
function of the file's choice is called. Storages of tensors lie in a pickle as files of torch.save inside; they are
read as weights_only.
"""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch

from fgm.utils.errors import UserError, first_line

CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "_codecs.encode": lambda text, encoding="utf-8": text.encode(encoding),  # bytes, as protocol 2 has them
}
UNREADABLE = (pickle.UnpicklingError, RuntimeError, LookupError, EOFError, AttributeError, TypeError, ValueError)
"""What load_tensors, or a walk through a state dict of another form than expected, can end in."""


def arrays() -> dict[str, Callable[..., Any]]:
    """What numpy's arrays and scalars are made of, under the names of its first and of its second version."""
    import importlib

    numpy = importlib.import_module("numpy")
    inner = importlib.import_module("numpy._core.multiarray")
    parts = {f"{core}.multiarray.{n}": getattr(inner, n) for core in ("numpy.core", "numpy._core")
             for n in ("_reconstruct", "scalar")}  # fmt: skip
    return parts | {"numpy.ndarray": numpy.ndarray, "numpy.dtype": numpy.dtype}


def load_tensors(file: Path | IO[bytes], mmap: bool = False) -> Any:
    """What torch.save has written, on the host: tensors and plain containers, or an error of torch's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # of what it refuses in the same breath
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def storage(content: bytes) -> Any:
    """A tensor's storage from a file of torch.save."""
    return load_tensors(BytesIO(content))


TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch.storage._load_from_bytes": storage,
}


class Restricted(pickle.Unpickler):
    """Admits the names of a table, and refuses every other."""

    def __init__(self, stream: IO[bytes], admitted: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(stream, **options)
        self.admitted = admitted

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.admitted:
            raise UserError(full)
        return self.admitted[full]

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("a persistent id")


def read_pickle(
    stream: IO[bytes], path: Path | str, admitted: Mapping[str, Callable[..., Any]], encoding: str = "ASCII"
) -> Any:
    """The object in stream.

    Args:
        stream, path: the pickle, and what to call it.
        admitted: what the names in it stand for.
        encoding: of strings from Python 2.

    Raises:
        UserError: it names anything else, or is no whole pickle.
    """
    try:
        return Restricted(stream, admitted, encoding=encoding).load()
    except UserError as refusal:
        raise UserError(
            f"{path}: names {refusal}, and only arrays, tensors and plain containers are read; nothing in it was run"
        ) from None
    except Exception as error:  # a damaged pickle can end in nearly any of them
        told = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: is no whole pickle ({told}); fetch it again") from None
