"""Published diffusers pipelines on this machine: which parts are there, and loading one without executing anything in it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fgm.utils.errors import UserError, first_line
from fgm.utils.pickles import require_finite
from fgm.utils.pretrained import has_network, locate, require_own_content

FACTOR = 8  # pixels per latent, along a side
MULTIPLE = 2 * FACTOR  # pixels per patch, along a side
SD3_MEDIUM = "stabilityai/stable-diffusion-3-medium-diffusers"
BILLIONS = {  # parameters of the transformer
    SD3_MEDIUM: 2.03,
    "stabilityai/stable-diffusion-3.5-medium": 2.24,
    "stabilityai/stable-diffusion-3.5-large": 8.06,
}
OTHER_PARTS = 5.66  # billions of parameters of the CLIPs (0.12, 0.69), T5-XXL's encoder (4.76) and the VAE (0.08)
TRAINING_BYTES = 34  # per parameter: bfloat16 teacher; float32 generator, online, EMA, a gradient, 2 x 2 Adam moments


def load_part(class_name: str, model: str, part: str, dtype: torch.dtype) -> Any:
    """Load one part of a published pipeline, see load_diffusers.

    Raises:
        UserError: the part is missing, or its weights do not fill the network.
    """
    return load_diffusers(class_name, require_parts(model, (part,)) / part, dtype)


def load_diffusers(class_name: str, directory: Path, dtype: torch.dtype) -> Any:
    """Load a diffusers network from config.json and *.safetensors in a local directory, executing nothing in them.

    Raises:
        UserError: its weights do not fill the network; diffusers would fill gaps at random and only warn.
    """
    import diffusers  # takes seconds to import
    from safetensors import SafetensorError

    require_own_content(*directory.glob("*.safetensors"))
    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    network = getattr(diffusers, class_name)
    if network._keep_in_fp32_modules:  # Wan's, in half precision; loading with it needs accelerate
        network = type(class_name, (network,), {"_keep_in_fp32_modules": None})
    try:
        net, info = network.from_pretrained(directory, torch_dtype=dtype, output_loading_info=True, **local)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{directory} does not load ({first_line(error)}): download it again") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{directory} lacks {len(missing)} weights, {missing[0]} first: download it again")
    require_finite(net.state_dict(), directory)
    return net


def require_parts(model: str, parts: Iterable[str]) -> Path:
    """Return the directory of a diffusers pipeline in which every part is complete.

    Raises:
        UserError: a part is missing; the message says where it comes from, its size and what training needs.
    """
    directory = locate(model)
    missing = [f"{part}/" for part in parts if not has_network(directory / part)]
    if missing:
        raise UserError(f"{model}: no {' and no '.join(missing)} on this machine; {remedy(model)}")
    return directory


def remedy(model: str) -> str:
    """Say where to get a model, its size and the memory that its distillation needs."""
    hub_id = model if model in BILLIONS else SD3_MEDIUM
    size, memory = 2 * (BILLIONS[hub_id] + OTHER_PARTS), TRAINING_BYTES * BILLIONS[hub_id]
    return (
        f"accept its licence and run hf download {hub_id} (at least {size:.0f} GB), or give "
        f"network.model=<its diffusers directory: transformer/, vae/, text_encoder*/, tokenizer*/>; "
        f"a distillation of all its weights takes {memory:.0f} GB of device memory, and activations"
    )


def require_size(size: int) -> None:
    """Raise UserError unless size is a multiple of 16."""
    if size % MULTIPLE:
        raise UserError(
            f"network.size = {size} is no multiple of {MULTIPLE}: Stable Diffusion 3 would crop it; give another"
        )
