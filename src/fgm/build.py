"""From a checked config to objects: the one place where the nouns of a recipe are put together."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console

from fgm import shipped
from fgm.config import digest
from fgm.errors import Refusal
from fgm.networks import Velocity
from fgm.teacher import run_of
from fgm.training.fit import Run
from fgm.training.method import Method
from fgm.training.setting import Setting

NOTHING = {"_target_": "fgm.evaluation.evaluation.Evaluation", "panel": {"_target_": "builtins.object"}}
NOUNS = ("data", "path", "time", "optimizer")
FILES = tuple(f"fgm.networks.{kind}.pretrained" for kind in ("edm_checkpoints", "torchcfm", "rectified_flow"))


def build(config: dict[str, Any], console: Console) -> tuple[Method, Run]:
    """The module to train and what to train it with.

    Raises:
        Refusal: a constructor finds its arguments wrong, or a teacher is missing.
    """
    run = build_run(config, console)
    return build_module(config), run


def build_module(config: dict[str, Any]) -> Method:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with refused(config["recipe"]):
        return instantiate(config["method"])(build_setting(config))


@contextmanager
def refused(recipe: str) -> Iterator[None]:
    """What a constructor finds wrong, as a Refusal that names the recipe."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, Refusal):
            raise cause from None
        raise Refusal(f"{recipe}: {cause or error}") from error
    except ValueError as error:
        raise Refusal(f"{recipe}: {error}") from error


def build_setting(config: dict[str, Any]) -> Setting:
    with torch.random.fork_rng():  # what of a teacher no file tells is the same in every process that goes on
        torch.manual_seed(0)
        teacher = instantiate(config["teacher"]) if config["teacher"] else None
    nouns = {name: instantiate(config[name]) for name in NOUNS}

    def fresh() -> Velocity:
        with torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            return instantiate(config["network"])

    return Setting(
        seed=config["seed"], schedule=instantiate(config["training"]), make_net=fresh, teacher=teacher, **nouns,
    )  # fmt: skip


def build_untrained(config: dict[str, Any], console: Console, log_every: int) -> tuple[Any, Run]:
    """As build, with random weights in place of a teacher's that would have to be trained, to be timed or counted.

    It logs at least every log_every cycles, and measures nothing.
    """
    schedule = config["training"] | {"log_every": min(log_every, config["training"]["log_every"])}
    config = with_stand_ins(config)
    evaluation = config["evaluation"] | {"every": 0, "best": None}
    node, method = config["teacher"], dict(config["method"])
    net = untrained_network(node, config["network"])
    config = config | {"training": schedule, "evaluation": evaluation, "teacher": net or node}
    start = "teacher" if net or node["_target_"] == "fgm.networks.guidance.Guided" else "random"
    return build(config | {"method": method | {"generator_start": start, "online_start": start}}, console)


def with_stand_ins(config: dict[str, Any]) -> dict[str, Any]:
    """Random encodings in place of cached ones, for a network of random weights that reads prompts."""
    network = config["network"]
    if not network.get("random_init"):
        return config
    model, cache = network["model"], config["data"].get("cache", {})
    text = {"_target_": "fgm.text.stand_in.RandomText", "model": model, "max_length": cache.get("max_length", 256)}
    data = {"_target_": "fgm.data.prompts.StandInPrompts", "model": model, "size": network["size"]}
    network, teacher = network | {"text": text}, config["teacher"]
    if teacher.get("net", {}).get("random_init"):
        teacher = teacher | {"net": network}
    return config | {"network": network, "teacher": teacher, "data": data, "evaluation": NOTHING}


def untrained_network(node: dict[str, Any], network: dict[str, Any]) -> dict[str, Any] | None:
    """The node of a teacher of the same architecture, where weights of its own would be read."""
    kind = node["_target_"].removeprefix("fgm.teacher.")
    if kind in FILES:  # of the recipe's own architecture, which a distillation copies
        return {"_target_": "fgm.teacher.untrained", "network": network, "guidance": 1.0}
    if kind not in ("from_run", "from_file", "from_shipped"):
        return None
    if kind == "from_shipped" and node["recipe"] in shipped.names():
        network = shipped.run(node["recipe"])["config"]["network"]
    if kind == "from_run":
        network = run_of(node)["network"]
    return {"_target_": "fgm.teacher.untrained", "network": network, "guidance": node["guidance"]}


def build_run(config: dict[str, Any], console: Console) -> Run:
    with refused(config["recipe"]):
        return Run(
            run_dir=Path(config["run_dir"]), name=config["recipe"], logger=config["logger"], console=console,
            config=config | {"config_digest": digest(config)},
            hardware=instantiate(config["trainer"]), evaluation=instantiate(config["evaluation"]),
            strategy=instantiate(config["strategy"]), world_change=config["world_change"],
        )  # fmt: skip
