"""Recipes that read no weights: what is timed or counted (make bench, make memory) needs their shapes alone.

    untrained        random weights for a teacher's that would be read or trained, random encodings for cached prompts
    without_files    besides, blank data, and Adam's moments of eight bits without bitsandbytes

Neither measures anything.
"""

from typing import Any

from fgm.cli import teacher
from fgm.cli.evaluators import make
from fgm.networks.sd3 import FACTOR
from fgm.teachers import shipped
from fgm.utils.pretrained import architecture
from fgm.utils.random import keyed_generator

OBJECTS = "fgm.cli.benchmarks.stand_ins"
WITH_WEIGHTS = (f"{OBJECTS}.random_weights", "fgm.networks.guidance.Guided")
NOTHING = {"_target_": "fgm.evaluation.evaluator.Evaluator", "suite": {"_target_": "builtins.object"}, "every": 0}


def untrained(config: dict[str, Any]) -> dict[str, Any]:
    config = without_encodings(config)
    node = without_weights(config["teacher"] or {}, config["network"])
    start = "teacher" if node.get("_target_") in WITH_WEIGHTS else "random"
    method = config["method"] | {"generator_start": start, "online_start": start}
    return config | {"teacher": node, "method": method, "evaluation": NOTHING}


def without_encodings(config: dict[str, Any]) -> dict[str, Any]:
    """Where the network of random weights reads prompts."""
    network, node = config["network"], config["teacher"] or {}
    if not network.get("random_init"):
        return config
    model, side = network["model"], network["size"] // FACTOR
    length = network["text"]["cache"]["max_length"]
    network = network | {"text": {"_target_": f"{OBJECTS}.RandomText", "model": model, "max_length": length}}
    if node.get("net", {}).get("random_init"):
        node = node | {"net": network}
    data = blank([architecture(model)["in_channels"], side, side], 0, [])
    return config | {"network": network, "teacher": node, "data": data}


def without_weights(node: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """A teacher of the same architecture: its run's own, or that of `network`, which reads the same files."""
    kind = node.get("_target_", "").removeprefix("fgm.cli.teacher.")
    if kind == "from_run":
        network = teacher.run_of(node)["network"]
    elif kind == "from_shipped":
        teacher.require(node)
        network = shipped.run(node["recipe"])["config"]["network"]
    elif kind != "from_file" and "checkpoint" not in node:
        return node
    return {"_target_": f"{OBJECTS}.random_weights", "net": network, "guidance": node.get("guidance", 1.0)}


def without_files(config: dict[str, Any]) -> dict[str, Any]:
    config = untrained(stripped(config))
    data = make(config["data"], "data")
    condition = data.conditions(1, keyed_generator("shapes", index=0))
    shape = None if condition is None else list(condition.shape[1:])
    return config | {"data": blank(list(data.shape), data.num_classes, shape)}


def blank(shape: list[int], num_classes: int, condition: list[int] | None) -> dict[str, Any]:
    return {"_target_": f"{OBJECTS}.BlankData", "shape": shape, "num_classes": num_classes, "condition": condition}


def stripped(node: Any) -> Any:
    """Without what would have to be there: real images, Stable Diffusion 3's weights, bitsandbytes."""
    if not isinstance(node, dict):
        return node
    node = {key: stripped(value) for key, value in node.items()}
    if str(node.get("_target_")).startswith("fgm.training.") and "data" in node:
        return node | {"data": None}  # the recipe's own, in whose shape they are
    if node.get("_target_") == "fgm.networks.sd3.pretrained":
        return node | {"random_init": True}
    if node.get("kernel") == "eight_bit":
        return node | {"_target_": f"{OBJECTS}.byte_moments"}
    return node
