"""Weights that the user holds: found by path, checked, never fetched, and nothing in them is executed.

    a file         of a state dict; torch.hub's names end in -<first eight hex digits of the sha256>, and where a name
                   has such an end, the file must match it
    a directory    in transformers' layout: config.json, *.safetensors

To look for them takes the standard library alone, so that what is missing is said within milliseconds.
"""

import os
import re
from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError, first_line
from fgm.utils.files import sha256_of

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"
MASK2FORMER = "facebook/mask2former-swin-small-coco-instance (config.json, model.safetensors)"
CLIP = "openai/clip-vit-large-patch14 (config.json, model.safetensors, tokenizer.json)"
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def checkpoints() -> Path:
    """Where torch.hub keeps files: $TORCH_HOME/hub/checkpoints."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def inception_weights(path: str | None = None) -> Path:
    """The file of Inception's weights: path, or the published name in torch.hub's folder.

    Raises:
        UserError: there is none, or it is not what its name says.
    """
    file = Path(path) if path else checkpoints() / INCEPTION
    if not file.is_file():
        raise UserError(
            f"no Inception weights at {file}: put {INCEPTION} (torch-fidelity's, release v0.2.0) there or give "
            "evaluation.suite.extractor.weights=<path>; nothing is downloaded. Without them: SmallClassifier for "
            "digits and Fashion-MNIST, Dinov2 from a local directory, RandomConvolutions for smoke tests (their "
            "distance is called fd)"
        )
    checked_hash(file)
    return file


def checked_hash(file: Path) -> str:
    """The first eight hex digits of the file's sha256.

    Raises:
        UserError: the file's name ends in another hash.
    """
    found = sha256_of(file)
    named = HASH_IN_NAME.search(file.name)
    if named and not found.startswith(named[1]):
        raise UserError(
            f"{file} has sha256 {found[:8]}..., and its name promises {named[1]}: "
            "it is damaged or another file; fetch it again, or give it a name of its own"
        )
    return found[:8]


def load_pretrained(class_name: str, directory: Path | str | None, published_as: str, **options: Any) -> Any:
    """A transformers network from config.json and *.safetensors, frozen; options are for its from_pretrained.

    Raises:
        UserError: the directory or a file is missing, or the weights do not fill the network.
    """
    directory = require_directory(directory, ("config.json", "*.safetensors"), published_as)
    import transformers  # seconds to import
    from safetensors import SafetensorError

    network = getattr(transformers, class_name)
    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        net, info = network.from_pretrained(directory, **local, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        told = first_line(error)
        raise UserError(f"{directory}: does not load ({told}); put the files of {published_as} there") from error
    lacking = sorted(set(info["missing_keys"]) & {name for name, _ in net.named_parameters()})
    if lacking:
        raise UserError(
            f"{directory}: lacks {len(lacking)} weights, {lacking[0]} first; put the files of {published_as} there"
        )
    return net.eval().requires_grad_(False)


def require_directory(directory: Path | str | None, patterns: tuple[str, ...], published_as: str) -> Path:
    """
    Raises:
        UserError: it is not there, or holds no file of one of the patterns.
    """
    for pattern in patterns:
        if directory is None or not any(Path(directory).glob(pattern)):
            raise UserError(
                f"{directory} holds no {pattern}: put the files of {published_as} there; nothing is downloaded"
            )
    assert directory is not None
    return Path(directory)


def directory_hash(directory: Path | str) -> str:
    """Eight hex digits of the first weights file's sha256, to stand in a protocol."""
    return sha256_of(min(Path(directory).glob("*.safetensors")))[:8]
