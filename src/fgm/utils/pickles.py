"""Checkpoints and pickles of other projects, recognised by their content and read without executing anything in them.

A pickle reaches code only by naming it. Here every name is looked up in a table of plain containers, arrays and tensors,
and any other name is an error: nothing is imported, and no function of the file's choice is called. Storages of tensors
are files of torch.save inside the pickle and are read with weights_only.
"""

import pickle
import re
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from io import BytesIO
from pathlib import Path, PosixPath
from typing import IO, Any

import numpy
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fgm.utils.errors import UserError, first_line
from fgm.utils.files import stranger

UNREADABLE = (pickle.UnpicklingError, RuntimeError, LookupError, EOFError, AttributeError, TypeError, ValueError)
"""Errors of load_tensors, and of reading a state dict that has another form than expected."""


WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "generator.")  # of DDP, torch.compile, trainers


def load_tensors(file: Path | IO[bytes], mmap: bool = False) -> Any:
    """Load a file of torch.save into host memory, weights only; numpy's scalars, arguments and paths are read too.

    Raises:
        One of UNREADABLE: the file is damaged, or has more than tensors and plain containers.
    """
    with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # precedes the error about the same file
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def read_checkpoint(file: Path) -> Any:
    """Return the content of a .safetensors file or of one of torch.save, whatever its name.

    Raises:
        UserError: it is another file, damaged, or has objects in it; the message says which.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing: it should hold the weights of a network")
    with file.open("rb") as stream:
        head = stream.read(512)
    if what := stranger(head):
        raise UserError(f"{file} {what}; it should hold the weights of a network")
    try:
        if head[8:9] == b"{":
            return load_file(file)
        with file.open("rb") as stream:  # by its name, torch would take the format
            return load_tensors(stream)
    except (*UNREADABLE, OSError, SafetensorError) as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            reason = f"names {named[1]}, and only tensors and plain containers are read; nothing in it was run"
        elif head[8:9] == b"{":
            reason = f"is no complete .safetensors file ({first_line(error)}); fetch it again"
        elif head.startswith(b"PK"):
            reason = "is a zip archive that torch.save did not write, or a damaged one"
        else:
            reason = "is no file of tensors: give a .safetensors file, or one of torch.save"
        raise UserError(f"{file}: {reason}") from error


def load_state(file: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint that has these names, whatever dicts and prefixes it is wrapped in.

    Raises:
        UserError: see read_checkpoint; or there is no such state dict, or several, or one with non-finite weights.
    """
    content = read_checkpoint(file)
    states = dict(state_dicts(content))
    if not states:
        raise UserError(f"{file}: holds no named tensors; give the state dict of a network")
    fitting = {
        key: state for key, state in states.items() if names and not set(names) - without_prefix(state, names).keys()
    }
    if len(fitting) > 1:
        raise UserError(
            f"{file}: holds the network {len(fitting)} times, as {', '.join(fitting)}; save one of them alone"
        )
    state = without_prefix(next(iter((fitting or states).values())), names)
    require_finite(state, file)
    return state


def state_dicts(content: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (dotted key, state dict) for every dict of tensors in nested dicts; tensors among other values count."""
    if not isinstance(content, dict):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        yield from state_dicts(value, f"{key}.{name}".lstrip("."))


def without_prefix(state: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the state without the prefixes of WRAPPERS that all its names have and none of the expected names needs."""
    while not names & state.keys():
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def require_finite(state: Mapping[str, Tensor], file: Path) -> None:
    """Raise a UserError that names the file and the first tensor with a value that is not finite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            broken = int((~tensor.isfinite()).sum())
            raise UserError(f"{file}: {name} has {broken} values that are not finite; its training has diverged")


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


HARMLESS: list[Any] = [  # what trainers leave beside weights, as safe_globals takes it
    *((part, name) for name, part in ARRAYS.items() if name.endswith(("scalar", "dtype"))),
    *(type(numpy.dtype(name)) for name in ("bool", "int32", "int64", "uint8", "float16", "float32", "float64")),
    Namespace, PosixPath,
]  # fmt: skip


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
