"""State dicts from files, read by an unpickler that admits tensors alone."""

from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from fgm.utils.errors import UserError
from fgm.utils.pickles import load_tensors


def load_state(file: Path) -> dict[str, Tensor]:
    """Named tensors from a .pth or .safetensors file.

    Raises:
        UserError: the file holds anything else.
    """
    try:
        state = read(file)
    except (UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise UserError(f"{file} is no state dict of tensors: give the file that torch-fidelity publishes") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} holds more than named tensors: give a state dict")
    return state


def read(file: Path) -> object:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return load_tensors(file)


def harmless(file: Path) -> BytesIO:
    """The file's tensors, pickled anew: for readers that would execute what they are given."""
    copy = BytesIO()
    torch.save(load_state(file), copy)
    copy.seek(0)
    return copy
