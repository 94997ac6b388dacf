"""Weights that others can use: tensors and text alone, nothing that executes."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fgm.errors import Refusal


def export_weights(module: Any, run_dir: Path) -> Path:
    """run_dir/<generator|teacher>.safetensors with the averaged network's state dict.

    Raises:
        Refusal: a weight is not finite.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.result().state_dict().items()}
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise Refusal(f"{run_dir}: {broken[0]} is not finite; training has diverged, and its weights are not exported")
    path = run_dir / f"{module.exported}.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    return path
