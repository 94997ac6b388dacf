"""From a checked config to objects: the one place where the nouns of an experiment are put together."""

import logging
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console

from fgm.cli.checks import refused
from fgm.cli.config import digest
from fgm.networks import VelocityModel
from fgm.training.module import TrainingModule
from fgm.training.trainer import Run


def build(config: dict[str, Any], console: Console) -> tuple[TrainingModule, Run]:
    """Return the module to train and what to train it with.

    Raises:
        UserError: a constructor rejects its arguments, or a teacher is missing.
    """
    run = build_run(config, console)
    return build_module(config), run


def build_module(config: dict[str, Any], data: Any = None) -> TrainingModule:
    """Return the module to train, on data that is there already or the config's."""
    for chatty in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):  # not the profilers
        logging.getLogger(f"lightning.pytorch.{chatty}").setLevel(logging.WARNING)
    with refused(config["experiment"]):
        with torch.random.fork_rng():  # weights that no file determines are the same in every process that resumes
            torch.manual_seed(0)
            teacher = instantiate(config["teacher"]) if config["teacher"] else None

        def network() -> VelocityModel:
            with torch.random.fork_rng():
                torch.manual_seed(config["seed"])
                return instantiate(config["network"])

        return instantiate(config["method"])(
            teacher=teacher, network=network, seed=config["seed"], config=instantiate(config["training"]),
            data=data or instantiate(config["data"]), path=instantiate(config["path"]), times=instantiate(config["time"]),
            optimizer=instantiate(config["optimizer"]),
        )  # fmt: skip


def build_run(config: dict[str, Any], console: Console) -> Run:
    with refused(config["experiment"]):
        return Run(
            run_dir=Path(config["run_dir"]), name=config["experiment"], console=console,
            config=config | {"config_digest": digest(config)}, evaluation=instantiate(config["evaluation"]),
            trainer=instantiate(config["trainer"] | config.get("resolved", {})), strategy=instantiate(config["strategy"]),
            loggers=instantiate(config["logger"]) or {}, callbacks=list((instantiate(config["callbacks"]) or {}).values()),
            allow_world_size_change=config["allow_world_size_change"],
        )  # fmt: skip
