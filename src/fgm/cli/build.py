"""From a checked config to objects: the one place where the nouns of a recipe are put together."""

import logging
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console

from fgm.cli.config import digest
from fgm.cli.evaluators import refused
from fgm.networks import VelocityModel
from fgm.training.fit import Run
from fgm.training.method import Method
from fgm.training.setting import Setting

NOUNS = ("data", "path", "time", "optimizer")


def build(config: dict[str, Any], console: Console) -> tuple[Method, Run]:
    """The module to train and what to train it with.

    Raises:
        UserError: a constructor finds its arguments wrong, or a teacher is missing.
    """
    run = build_run(config, console)
    return build_module(config), run


def build_module(config: dict[str, Any]) -> Method:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with refused(config["recipe"]):
        return instantiate(config["method"])(build_setting(config))


def build_setting(config: dict[str, Any]) -> Setting:
    with torch.random.fork_rng():  # what of a teacher no file tells is the same in every process that goes on
        torch.manual_seed(0)
        teacher = instantiate(config["teacher"]) if config["teacher"] else None
    nouns = {name: instantiate(config[name]) for name in NOUNS}

    def fresh() -> VelocityModel:
        with torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            return instantiate(config["network"])

    return Setting(
        seed=config["seed"], schedule=instantiate(config["training"]), make_net=fresh, teacher=teacher, **nouns,
    )  # fmt: skip


def build_run(config: dict[str, Any], console: Console) -> Run:
    with refused(config["recipe"]):
        return Run(
            run_dir=Path(config["run_dir"]), name=config["recipe"], logger=config["logger"], console=console,
            config=config | {"config_digest": digest(config)},
            hardware=instantiate(config["trainer"]), evaluation=instantiate(config["evaluation"]),
            strategy=instantiate(config["strategy"]), world_change=config["world_change"],
        )  # fmt: skip
