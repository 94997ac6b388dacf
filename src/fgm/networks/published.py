"""Parts of published diffusers pipelines as networks: local files alone, whole, and nothing in them executed."""

from pathlib import Path
from typing import Any

import torch

from fgm.utils.errors import UserError, first_line
from fgm.utils.pretrained import require


def load_part(class_name: str, model: str, part: str, dtype: torch.dtype) -> Any:
    """A diffusers network from config.json and *.safetensors of one part.

    Raises:
        UserError: the part is missing, or its weights do not fill the network.
    """
    return load(class_name, require(model, (part,)) / part, dtype)


def load(class_name: str, directory: Path, dtype: torch.dtype) -> Any:
    """A diffusers network from config.json and *.safetensors of a directory.

    Raises:
        UserError: its weights do not fill the network.
    """
    import diffusers  # seconds to import, needed here alone
    from safetensors import SafetensorError

    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        net, info = getattr(diffusers, class_name).from_pretrained(
            directory, torch_dtype=dtype, output_loading_info=True, **local
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{directory} does not load ({first_line(error)}): download it again") from error
    require_filled(info["missing_keys"], directory)
    return net


def require_filled(missing: list[str], directory: Path) -> None:
    """diffusers fills what is missing at random, and only warns."""
    if missing:
        raise UserError(f"{directory} lacks {len(missing)} weights, {sorted(missing)[0]} first: download it again")
