"""The contract of a config: what fgm.training.contract checks, from configs and networks on the meta device.

What only a file can say, such as an EDM checkpoint's classes, is checked again when the teacher is loaded.
"""

from dataclasses import replace
from inspect import isclass
from typing import Any, get_type_hints

import torch

from fgm.cli.checks import locate, make
from fgm.cli.loading import architecture
from fgm.cli.runs import known_targets
from fgm.cli.teacher import run_of
from fgm.networks import VelocityModel
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.teachers import bundled
from fgm.training.contract import Contract, Party, Shapes, require
from fgm.utils.errors import UserError

FILES = ("checkpoint", "directory", "file", "model")  # arguments of what cannot be built without them
DIFFERENT_STARTS = ("fit", "random")


def require_fit(config: dict[str, Any], evaluation: Any) -> Any:
    """Check a run before its teacher is trained or loaded; return its data.

    Raises:
        UserError: two of its parts do not fit.
    """
    contract = contract_of(config, evaluation)
    require(contract)
    return contract.data


def require_built(config: dict[str, Any], module: Any) -> None:
    """Check a module that is about to be trained: its teacher's own word, and that its result can be loaded.

    Raises:
        UserError: two of its parts do not fit.
    """
    contract, teacher = contract_of(config, None, module.data), None
    if contract.teacher and contract.distils:
        teacher = Party.of(module.teacher, contract.teacher.name).over(contract.teacher)
    scale, key, guided = contract.guidance
    guided = teacher if guided is contract.teacher else guided
    exported = {} if config["method"].get("adapters") else shapes(module.result())
    loaded = loaded_shapes(config) if exported else {}
    require(replace(contract, teacher=teacher or contract.teacher, guidance=(scale, key, guided), exported=exported,
                    loaded=loaded))  # fmt: skip


def contract_of(config: dict[str, Any], evaluation: Any, data: Any = None) -> Contract:
    method, node = config["method"], config["teacher"]
    distils, teacher = "t_star" in method, party_of_teacher(node, config["data"])
    starts = (method["generator_init"], method["online_init"]) if distils else ("teacher" if teacher else "random",)
    afresh = any(start in DIFFERENT_STARTS for start in starts)
    network = party_of(config["network"], "network") if afresh else None
    guided = teacher
    if not distils:
        seen = True if method.get("label_dropout") else teacher.null_condition if teacher else False
        guided = Party("this run's network", null_condition=seen)
    scale = (node or {}).get("guidance", (node or {}).get("scale", 1.0)) if distils else method.get("guidance", 1.0)
    key = ("teacher.scale" if "scale" in (node or {}) else "teacher.guidance") if distils else "method.guidance"
    return Contract(
        data or make(config["data"], "data"), make(config["path"], "path"), evaluation, teacher, network, distils,
        (scale if isinstance(scale, int | float) else 1.0, key, guided), method.get("label_dropout", 0.0),
        tuple(method.get("steps", (1,))) if not distils else (method["steps"],),
        config["network"] if afresh or builds_network(node) else {},
        tuple(change.partition("=")[0] for change in config["differs"]),
    )  # fmt: skip


def builds_network(teacher: dict[str, Any] | None) -> bool:
    """Return whether loading a run of this teacher reads the run's own `network` node, see loading.architecture."""
    return teacher is None or teacher["_target_"] in known_targets()


def party_of_teacher(node: dict[str, Any] | None, data: dict[str, Any]) -> Party | None:
    """Return what a `teacher` node's network was trained for; of a run and of bundled weights by their config."""
    if not node:
        return None
    if node["_target_"] == "fgm.cli.teacher.from_run":
        return party_of_run(run_of(node), f"teacher {node['experiment']}", data)
    if node["_target_"] == "fgm.cli.teacher.from_bundled":
        return party_of_run(bundled.run(node["experiment"])["config"], f"teacher {node['experiment']}", data)
    return party_of(node, "teacher")


def party_of_run(config: dict[str, Any], name: str, data: dict[str, Any]) -> Party:
    method = config["method"]
    own = None if config["teacher"] else False  # its own teacher may have seen it
    known = Party(
        name, path=make(config["path"], "path"), data_std=None if config["data"] == data else std_of(config["data"]),
        null_condition=True if method.get("label_dropout") else own, velocity="t_star" not in method,
        node=config["network"],
    )  # fmt: skip
    return known.over(party_of(config["network"], name))


def std_of(data: dict[str, Any]) -> float | None:
    """Return the standard deviation of a teacher's data; None if it is not on this machine."""
    try:
        return make(data, "data").std
    except UserError:
        return None


def party_of(node: dict[str, Any], role: str) -> Party:
    """Return what a network's node says: the class that it names or returns, and the suite's own on the meta device.

    A class of the user's is not built: its attributes say what it was trained for, if they do.
    """
    target = locate(node["_target_"], f"{role}._target_")
    kind = target if isclass(target) else returned(target)
    party = Party.of(kind, f"{role} {getattr(kind or target, '__name__', 'of your own')}")
    inner = next((node[key] for key in ("net", "network") if "_target_" in (node.get(key) or {})), None)
    if isclass(kind) and issubclass(kind, ClassifierFreeGuidance) and inner:
        return party_of(inner, role)
    if inner:
        party = party.over(party_of(inner, role))
    elif target.__module__.startswith("fgm.") and not any(key in node for key in FILES):
        with torch.device("meta"):
            party = Party.of(make(node, role), party.name).over(party)
    given = node.get("path")
    if isinstance(given, dict) and "_target_" in given:  # a velocity on any path, converted to this one
        party = replace(party, path=make(given, "path"))
    return replace(party, node=node if role == "network" else {})


def returned(function: Any) -> Any:
    """Return the class that a function is annotated to return; None if it says nothing."""
    try:
        return get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def shapes(net: Any) -> Shapes:
    return {name: tuple(weight.shape) for name, weight in net.state_dict().items()}


def loaded_shapes(config: dict[str, Any]) -> Shapes:
    """Return the weights of the network that loading this run builds; none if only files know."""
    node: Any = config["network"] if "t_star" not in config["method"] else architecture(config)
    if isinstance(node, VelocityModel):
        return shapes(node)
    if "directory" in node:
        return {}
    if "model" in node:
        node = node | {"random_init": True}
    with torch.device("meta"):
        return shapes(make(node, "network"))
