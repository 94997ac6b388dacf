"""Weights that others can use: tensors and text alone, nothing that executes."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fgm.training.method import Method
from fgm.training.sharding import gathered
from fgm.utils.errors import UserError
from fgm.utils.files import replacing


def exported_state(module: Method) -> dict[str, Tensor]:
    """The averaged network's, whole and on the host; on the first rank, and all must ask."""
    state = gathered(dict(module.result().state_dict()))
    return {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}


def export_weights(module: Method, run_dir: Path) -> Path:
    """run_dir/<generator|teacher>.safetensors with the averaged network's state dict; all ranks must ask.

    Raises:
        UserError: a weight is not finite.
    """
    state = exported_state(module)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{run_dir}: {broken[0]} is not finite; training has diverged, and its weights are not exported"
        )
    path = run_dir / f"{module.exported}.safetensors"
    if state:
        with replacing(path) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    return path
