"""Published networks that the user holds in a local directory; nothing is downloaded, and nothing in it is executed."""

from pathlib import Path
from typing import Any

from fgm.errors import Refusal, first_line
from fgm.files import sha256_of

MASK2FORMER = "facebook/mask2former-swin-small-coco-instance (config.json, model.safetensors)"
CLIP = "openai/clip-vit-large-patch14 (config.json, model.safetensors, tokenizer.json)"


def load_pretrained(class_name: str, directory: Path | str | None, published_as: str, **options: Any) -> Any:
    """A transformers network from config.json and *.safetensors, frozen; options are for its from_pretrained.

    Raises:
        Refusal: the directory or a file is missing, or the weights do not fill the network.
    """
    directory = require_files(directory, ("config.json", "*.safetensors"), published_as)
    import transformers  # seconds to import, needed here alone
    from safetensors import SafetensorError

    network = getattr(transformers, class_name)
    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        net, info = network.from_pretrained(directory, **local, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        told = first_line(error)
        raise Refusal(f"{directory}: does not load ({told}); put the files of {published_as} there") from error
    lacking = sorted(set(info["missing_keys"]) & {name for name, _ in net.named_parameters()})
    if lacking:
        raise Refusal(
            f"{directory}: lacks {len(lacking)} weights, {lacking[0]} first; put the files of {published_as} there"
        )
    return net.eval().requires_grad_(False)


def require_files(directory: Path | str | None, patterns: tuple[str, ...], published_as: str) -> Path:
    for pattern in patterns:
        if directory is None or not any(Path(directory).glob(pattern)):
            raise Refusal(
                f"{directory} holds no {pattern}: put the files of {published_as} there; nothing is downloaded"
            )
    assert directory is not None
    return Path(directory)


def fingerprint(directory: Path | str) -> str:
    """Eight hex digits of the first weights file's sha256, to stand in a protocol."""
    return sha256_of(min(Path(directory).glob("*.safetensors")))[:8]
