"""Published weights on this machine: where they are, whether they are complete and what they contain.

Nothing is downloaded, and nothing in a file is executed. A model is a directory or a hub id in the hub's cache:

    DIRECTORY/transformer/            config.json, diffusion_pytorch_model.safetensors, or its shards and their index
              vae/                    the same
              text_encoder[_2|_3]/    config.json, model.safetensors, or its shards and their index
              tokenizer[_2|_3]/       the tokenizer's files
"""

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from fgm.utils.errors import UserError, first_line
from fgm.utils.files import damage_of, read_object, sha256_of, stranger
from fgm.utils.pickles import require_finite

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/"
SOURCES = {  # of teachers' checkpoints
    "edm-cifar10-32x32-uncond-vp.pkl": EDM,
    "edm-cifar10-32x32-cond-vp.pkl": EDM,
    "edm-cifar10-32x32-uncond-ve.pkl": EDM,
    "edm-imagenet-64x64-cond-adm.pkl": EDM,
    "edm2-img64-s-1073741-0.075.pkl": EDM2,
    "edm2-img64-m-2147483-0.060.pkl": EDM2,
    "edm2-img64-l-1073741-0.040.pkl": EDM2,
    "edm2-img64-xl-0671088-0.040.pkl": EDM2,
    "cfm_cifar10_weights_step_400000.pt": "https://github.com/atong01/conditional-flow-matching/releases",
    "checkpoint_8.pth": "https://github.com/gnobitab/RectifiedFlow (its README links to it)",
}
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"
MASK2FORMER = "facebook/mask2former-swin-small-coco-instance (config.json, model.safetensors)"
CLIP = "openai/clip-vit-large-patch14 (config.json, model.safetensors, tokenizer.json)"
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # torch.hub's names end in the beginning of the sha256
HEAD = 4096  # bytes of a tensor in its fingerprint


def locate(model: str) -> Path:
    """Return the directory of a path or of a hub id in the hub's cache; it may not exist."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no valid hub id
        return Path(model)


def weight_files(directory: Path) -> list[Path]:
    """Return the .safetensors files of a network; none if one is missing.

    Raises:
        UserError: the index of its shards is damaged.
    """
    for stem in ("diffusion_pytorch_model", "model"):
        single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            weight_map = read_object(index, "the shards of a network").get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise UserError(f"{index}: has no weight_map from weights to their files; download it again")
            shards = sorted({index.with_name(name) for name in weight_map.values()})
            return shards if all(shard.is_file() for shard in shards) else []
    return []


def has_network(directory: Path) -> bool:
    """Return whether a directory has the configuration and all weights of a network."""
    return (directory / "config.json").is_file() and bool(weight_files(directory))


def fingerprint(files: Iterable[Path]) -> str:
    """Return 16 hex digits of every tensor's name, dtype, shape and first 4 KiB, however the files are split.

    Training changes the first thousand weights of every tensor, so this identifies gigabytes in a moment.

    Raises:
        UserError: a file is damaged.
    """
    tensors: dict[str, list[Any]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:  # tensors are mapped, and only what is hashed is read
                for name in file.keys():  # noqa: SIM118
                    tensor, dtype = file.get_tensor(name), file.get_slice(name).get_dtype()
                    head = tensor.reshape(-1)[: HEAD // tensor.element_size()].view(torch.uint8)
                    tensors[name] = [dtype, list(tensor.shape), sha256(head.numpy().tobytes()).hexdigest()]
        except (OSError, SafetensorError) as error:
            reason = damage_of(path, error)
            raise UserError(f"{path} is no complete .safetensors file ({reason}): fetch it again") from error
    return sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()[:16]


def require_checkpoint(checkpoint: str, digest: str | None) -> Path:
    """Return the file of a checkpoint if its sha256 begins with digest.

    Raises:
        UserError: it is missing (the message says where a published file comes from), or has another sha256.
    """
    file = Path(checkpoint)
    if not file.is_file():
        source = SOURCES.get(file.name)
        raise UserError(
            f"there is no checkpoint {file}" + (f"; it comes from {source}, nothing is downloaded" if source else "")
        )
    require_own_content(file)
    actual = sha256_of(file) if digest else ""
    if digest and not actual.startswith(digest.lower()):
        raise UserError(f"{file} is another file: its sha256 is {actual[:16]}..., not {digest[:16]}")
    return file


def require_own_content(*files: Path) -> None:
    """Raise a UserError if a file is a pointer of Git LFS, a web page, empty or an image."""
    for file in files:
        with file.open("rb") as stream:
            if what := stranger(stream.read(512)):
                raise UserError(f"{file} {what}")


def hash_of_checkpoint(file: Path) -> str:
    """Return the first eight hex digits of a file's sha256.

    Raises:
        UserError: the file's name ends in another hash.
    """
    actual, named = sha256_of(file), HASH_IN_NAME.search(file.name)
    if named and not actual.startswith(named[1]):
        raise UserError(
            f"{file} has sha256 {actual[:8]}..., and its name promises {named[1]}: "
            "it is damaged or another file; fetch it again, or give it another name"
        )
    return actual[:8]


def hash_of_directory(directory: Path | str) -> str:
    """Return the first eight hex digits of the sha256 of a network's first file of weights."""
    return sha256_of(min(Path(directory).glob("*.safetensors")))[:8]


def inception_weights(path: str | None = None) -> Path:
    """Return the file of Inception's weights: path, or the published name in torch.hub's folder.

    Raises:
        UserError: it is missing, or its name promises another hash.
    """
    file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not file.is_file():
        raise UserError(
            f"no Inception weights at {file}: put {INCEPTION} (torch-fidelity's, release v0.2.0) there or give "
            "evaluation.suite.extractor.weights=<path>; nothing is downloaded. Without them: SmallClassifier for "
            "digits and Fashion-MNIST, Dinov2 from a local directory, RandomConvolutions for smoke tests (their "
            "distance is called fd)"
        )
    hash_of_checkpoint(file)
    return file


def require_directory(
    directory: Path | str | None, patterns: tuple[str, ...], published_as: str, key: str = "directory"
) -> Path:
    """Return the directory if it has a file for each pattern.

    Raises:
        UserError: it does not; the message calls a directory that is not given by its key.
    """
    if directory is None:
        raise UserError(f"{key} = null: put {published_as} into a folder and name it there; nothing is downloaded")
    for pattern in patterns:
        if not any(Path(directory).glob(pattern)):
            raise UserError(
                f"{directory} has no {pattern}: put the files of {published_as} there; nothing is downloaded"
            )
    return Path(directory)


def load_transformers(class_name: str, directory: Path | str | None, published_as: str, **options: Any) -> Any:
    """Load a frozen transformers network from config.json and *.safetensors; options are from_pretrained's.

    Raises:
        UserError: the directory or a file is missing, or the weights do not fill the network.
    """
    directory = require_directory(directory, ("config.json", "*.safetensors"), published_as)
    require_own_content(*directory.glob("*.safetensors"))
    import transformers  # takes seconds to import

    network = getattr(transformers, class_name)
    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        net, info = network.from_pretrained(directory, **local, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(f"{directory}: does not load ({reason}); put the files of {published_as} there") from error
    missing = sorted(set(info["missing_keys"]) & {name for name, _ in net.named_parameters()})
    if missing:
        raise UserError(
            f"{directory}: lacks {len(missing)} weights, {missing[0]} first; put the files of {published_as} there"
        )
    require_finite(net.state_dict(), directory)
    return net.eval().requires_grad_(False)
