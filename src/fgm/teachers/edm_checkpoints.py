"""EDM's and EDM2's .pkl files, read without running the code that they carry.

A file is a pickled dict whose `ema` is a network. Its modules are persistent objects: each holds its class's source
and says "compile me". Here each becomes a Persistent, a name and a state, and the source is passed over; a state has
torch's _parameters, _buffers and _modules, and in _init_kwargs what its constructor was given: the architecture.

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
from fgm.utils.pickles import CONTAINERS, TENSORS, UNREADABLE, arrays, read_pickle
from fgm.utils.pretrained import require_checkpoint
from fgm.utils.validation import validated

MODELS: dict[tuple[str, str], tuple[Any, str]] = {  # outer and inner class: architecture, and where its weights begin
    ("EDMPrecond", "SongUNet"): (SongUNet, "model."),
    ("EDMPrecond", "DhariwalUNet"): (DhariwalUNet, "model."),
    ("Precond", "UNet"): (EDM2UNet, "unet."),
}
IDLE = ("augment_dim", "dropout", "label_dropout", "use_fp16", "sigma_min", "sigma_max", "sigma_data", "model_type",
        "logvar_channels")  # fmt: skip
OUTER = ("img_resolution", "img_channels", "label_dim")
UNUSED = ("map_augment.", "logvar_")  # weights of their training alone


@dataclass(frozen=True)
class Persistent:
    """What a pickle says of an object whose class it brings along."""

    name: str
    state: dict[str, Any]

    @classmethod
    def of(cls, meta: dict[str, Any]) -> "Persistent":
        return cls(str(meta["class_name"]), dict(meta["state"] or {}))

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.state.get("_init_kwargs") or {})

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All parameters and buffers below, by their dotted names."""
        own = {**self.state.get("_parameters", {}), **self.state.get("_buffers", {})}
        found = {prefix + name: tensor for name, tensor in own.items() if tensor is not None}
        for name, module in self.state.get("_modules", {}).items():
            found |= inner(module).tensors(f"{prefix}{name}.") if module is not None else {}
        return found


def inner(module: Any) -> Persistent:
    """A module that is no persistent object, torch's ModuleDict, is read alike."""
    return module if isinstance(module, Persistent) else Persistent(type(module).__name__, module.__dict__)


class ModuleDict:
    """Stands for torch's own: its state is set, and nothing called."""


ADMITTED = {
    "torch_utils.persistence._reconstruct_persistent_obj": Persistent.of,
    "dnnlib.util.EasyDict": dict,
    "torch.nn.modules.container.ModuleDict": ModuleDict,
    "torch.nn.modules.container.ModuleList": ModuleDict,
    "copyreg._reconstructor": lambda kind, base, state: kind(),
    "builtins.object": object,
}


@validated
def pretrained(checkpoint: str, path: ProbabilityPath, sha256: str | None = None) -> EDMVelocity:
    """A published network in float32.

    Args:
        checkpoint: an EDM or EDM2 .pkl.
        path: of the velocity.
        sha256: what the file must hash to, or its beginning; unchecked if None.

    Raises:
        UserError: no such file, another hash, code or another network in it, or weights that do not fit.
    """
    file = require_checkpoint(checkpoint, sha256)
    with file.open("rb") as stream:
        content = read_pickle(stream, file, CONTAINERS | arrays() | TENSORS | ADMITTED)
    net = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(net, Persistent):
        raise UserError(f"{file}: holds no network under `ema`; give a snapshot of EDM's or EDM2's training or release")
    try:
        return velocity_of(net, file, path)
    except UNREADABLE as error:
        raise UserError(f"{file}: does not hold the weights of its architecture ({last_line(error)})") from error


def velocity_of(net: Persistent, file: Path, path: ProbabilityPath) -> EDMVelocity:
    told = net.arguments
    inside = str(told.get("model_type", "UNet"))
    if (net.name, inside) not in MODELS:
        known = ", ".join(f"{outer} of {model}" for outer, model in MODELS)
        raise UserError(f"{file}: is a {net.name} of {inside}, and {known} alone are read")
    kind, prefix = MODELS[net.name, inside]
    size, channels, classes = (int(told.get(name, 0)) for name in OUTER)
    options = {key: value for key, value in told.items() if key not in (*IDLE, *OUTER)}
    unknown = options.keys() - inspect.signature(kind).parameters.keys()
    if unknown:
        raise UserError(f"{file}: its {inside} has {', '.join(sorted(unknown))}, which is not known here")
    model = kind(img_resolution=size, in_channels=channels, out_channels=channels, label_dim=classes, **options)
    weights = {name.removeprefix(prefix): tensor.float() for name, tensor in net.tensors().items()}
    model.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith(UNUSED)})
    std = float(net.state.get("sigma_data", 0.5))
    return EDMVelocity(model, (channels, size, size), classes, path, std)
