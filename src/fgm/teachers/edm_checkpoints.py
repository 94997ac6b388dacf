"""EDM's and EDM2's .pkl files, read without running the code that they contain.

A file is a pickled dict whose `ema` is a network. Its modules are "persistent objects": each contains the source of its
class, to be compiled on loading. Here each becomes a PersistentObject, a name and a state, and the source is ignored. A
state has torch's _parameters, _buffers and _modules, and in _init_kwargs the arguments of the constructor.

    {"ema": EDMPrecond(img_resolution, img_channels, label_dim, model_type="SongUNet", ...)}    EDM
    {"ema": Precond(img_resolution, img_channels, label_dim, model_channels=192, ...)}          EDM2, in float16
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fgm.flow.paths import ProbabilityPath
from fgm.teachers.edm import EDMVelocity
from fgm.teachers.edm2 import EDM2UNet
from fgm.teachers.edm_networks import DhariwalUNet, SongUNet
from fgm.utils.errors import UserError, last_line
from fgm.utils.pickles import ARRAYS, CONTAINERS, TENSORS, UNREADABLE, read_pickle, require_finite
from fgm.utils.pretrained import require_checkpoint
from fgm.utils.validation import validated

NETWORKS: dict[tuple[str, str], tuple[Any, str]] = {  # outer and inner class: our class, prefix of its weights
    ("EDMPrecond", "SongUNet"): (SongUNet, "model."),
    ("EDMPrecond", "DhariwalUNet"): (DhariwalUNet, "model."),
    ("Precond", "UNet"): (EDM2UNet, "unet."),
}
SHAPE_ARGUMENTS = ("img_resolution", "img_channels", "label_dim")
IGNORED_ARGUMENTS = ("augment_dim", "dropout", "label_dropout", "use_fp16", "sigma_min", "sigma_max", "sigma_data",
                     "model_type", "logvar_channels")  # fmt: skip
IGNORED_WEIGHTS = ("map_augment.", "logvar_")  # used by their training only


@dataclass(frozen=True)
class PersistentObject:
    """A pickled module whose class is in the file."""

    name: str
    state: dict[str, Any]

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "PersistentObject":
        return cls(str(meta["class_name"]), dict(meta["state"] or {}))

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return all parameters and buffers by their dotted names."""
        here = {**self.state.get("_parameters", {}), **self.state.get("_buffers", {})}
        tensors = {prefix + name: tensor for name, tensor in here.items() if tensor is not None}
        for name, module in self.state.get("_modules", {}).items():
            if isinstance(module, ModuleDict):
                module = PersistentObject("ModuleDict", module.__dict__)
            tensors |= module.tensors(f"{prefix}{name}.") if module is not None else {}
        return tensors


class ModuleDict:
    """Takes the place of torch's own: unpickling sets its attributes and calls nothing."""


ALLOWED = {
    "torch_utils.persistence._reconstruct_persistent_obj": PersistentObject.from_meta,
    "dnnlib.util.EasyDict": dict,
    "torch.nn.modules.container.ModuleDict": ModuleDict,
    "torch.nn.modules.container.ModuleList": ModuleDict,
    "copyreg._reconstructor": lambda kind, base, state: kind(),
    "builtins.object": object,
}


@validated
def pretrained(checkpoint: str, path: ProbabilityPath, sha256: str | None = None) -> EDMVelocity:
    """Load a published network in float32.

    Args:
        checkpoint: an EDM or EDM2 .pkl.
        path: of the velocity.
        sha256: the beginning of the file's sha256; None checks nothing.

    Raises:
        UserError: the file is missing, has another hash, contains code or another network, or its weights do not fit.
    """
    file = require_checkpoint(checkpoint, sha256)
    with file.open("rb") as stream:
        content = read_pickle(stream, file, CONTAINERS | ARRAYS | TENSORS | ALLOWED)
    net = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(net, PersistentObject):
        raise UserError(f"{file}: has no network under `ema`; give a snapshot of EDM's or EDM2's training or release")
    try:
        return build_velocity(net, file, path)
    except UNREADABLE as error:
        raise UserError(f"{file}: does not have the weights of its architecture ({last_line(error)})") from error


def build_velocity(net: PersistentObject, file: Path, path: ProbabilityPath) -> EDMVelocity:
    arguments = dict(net.state.get("_init_kwargs") or {})
    inner = str(arguments.get("model_type", "UNet"))
    if (net.name, inner) not in NETWORKS:
        known = ", ".join(f"{outer} of {model}" for outer, model in NETWORKS)
        raise UserError(f"{file}: is a {net.name} of {inner}; known are {known}")
    kind, prefix = NETWORKS[net.name, inner]
    size, channels, classes = (int(arguments.get(name, 0)) for name in SHAPE_ARGUMENTS)
    options = {k: v for k, v in arguments.items() if k not in (*IGNORED_ARGUMENTS, *SHAPE_ARGUMENTS)}
    unknown = options.keys() - inspect.signature(kind).parameters.keys()
    if unknown:
        raise UserError(f"{file}: its {inner} has {', '.join(sorted(unknown))}, which is not known here")
    model = kind(img_resolution=size, in_channels=channels, out_channels=channels, label_dim=classes, **options)
    weights = {name.removeprefix(prefix): tensor.float() for name, tensor in net.tensors().items()}
    weights = {name: weight for name, weight in weights.items() if not name.startswith(IGNORED_WEIGHTS)}
    require_finite(weights, file)
    model.load_state_dict(weights)
    velocity = EDMVelocity(model, (channels, size, size), classes, path, float(net.state.get("sigma_data", 0.5)))
    velocity.null_condition = float(arguments.get("label_dropout") or 0) > 0
    return velocity
