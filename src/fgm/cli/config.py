"""Recipes: from a name and overrides to one resolved, checked config.

python -m fgm.cli.config composes every recipe and prints its digest.

A recipe is configs/experiment/<name>.yaml, a few values over nouns that configs/ defines. The same name and overrides
always mean the same run directory, outputs/<name>[__<override>...], so that the same command again resumes.
"""

import json
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import NonNegativeInt

from fgm.cli.checks import check, check_arguments
from fgm.utils.errors import UserError, entry, first_line, hint, require_installed

CONFIGS = Path(__file__).parents[3] / "configs"
PLACES = (  # where, when and why a run writes, and whether it may go on, not what it is
    "outputs", "experiments", "run_dir", "logger", "study", "save_every_minutes", "keep_every_n_steps", "allow_world_size_change",
    "differs",
)  # fmt: skip
ALIKE = ("seed", "trainer.accelerator", "data.directory", "data.download")
SINGLE = "fgm.training.distributed.Single"
UNSAID = {  # options that came later, and their values where a recipe does without: a digest does not tell them
    "kernel": "auto", "micro_batches": 1, "ema_device": "same", "compile": False, "random_init": False,
    "online_optimizer": None,
}  # fmt: skip


@dataclass(frozen=True)
class Root:
    """The keys of a config; those that are nouns are nodes with a _target_.

    Attributes:
        differs: overrides that make the run another experiment than its recipe.
    """

    data: Any
    network: Any
    path: Any
    time: Any
    method: Any
    teacher: Any
    optimizer: Any
    evaluation: Any
    training: Any
    trainer: Any
    strategy: Any
    recipe: str
    run_dir: str
    seed: NonNegativeInt = 0
    logger: Literal["auto", "csv", "wandb"] = "auto"
    outputs: str = "outputs"
    experiments: str = "experiments"
    allow_world_size_change: bool = False
    differs: list[str] = field(default_factory=list)


def recipes() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def read_recipe(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """The resolved config of a recipe, as plain containers.

    Raises:
        UserError: unknown recipe, unknown key, wrong type or value out of range.
    """
    if recipe not in recipes():
        raise UserError(f"no recipe {recipe!r} in configs/experiment; {hint(recipe, recipes())}")
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            composed = compose("config", overrides=[f"experiment={recipe}", *overrides])
        config: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error, recipe, overrides)) from error
    config |= {"recipe": recipe, "teacher": config.get("teacher") or None, "differs": differing(overrides)}
    config["run_dir"] = config.get("run_dir") or f"{config['outputs']}/{run_name(recipe, overrides)}"
    require_float32(config)
    require_strategy(config)
    require_shards_suffice(config)
    check_arguments(config, Root, "a config", "")
    check(config)
    return config


def require_extras(node: Any) -> None:
    """
    Raises:
        UserError: an optimizer below node needs a package that is not installed.
    """
    if isinstance(node, dict):
        if node.get("kernel") == "eight_bit":
            require_installed("bitsandbytes", "optimizer.kernel = eight_bit", "eight-bit")
        for value in node.values():
            require_extras(value)


def require_float32(config: dict[str, Any]) -> None:
    if config["trainer"]["precision"] in ("bf16-true", "16-true", "16-mixed"):
        raise UserError(
            f"trainer.precision = {config['trainer']['precision']}: give bf16-mixed. bf16-true makes times and noise "
            "bfloat16 (t = 0.737 reaches the network as 0.740) and loses updates (a step of 1e-5 on a weight of 0.02 "
            "rounds to nothing); float16 overflows in Stable Diffusion 3"
        )


def require_strategy(config: dict[str, Any]) -> None:
    """Refuse several devices without one; what of the wrong type is left to check."""
    devices = config["trainer"]["devices"]
    if config["strategy"].get("_target_") == SINGLE and isinstance(devices, int) and devices > 1:
        raise UserError(f"trainer.devices = {devices} needs a strategy for several: give strategy=ddp or fsdp")


def require_shards_suffice(config: dict[str, Any]) -> None:
    """Refuse with FSDP2 what networks in shards cannot do."""
    method, training, trainer, cannot = config["method"], config["training"], config["trainer"], {}
    if config["strategy"].get("_target_") == "fgm.training.distributed.FSDP":
        cannot = {
            "method.adapters": method.get("adapters") and "shares one network, which every device holds whole",
            "method.discriminator": method.get("adversary")
            and "reads a network at its middle, where its shards are apart",
            "trainer.precision": trainer["precision"] == "64-true" and "must be 32-true or bf16-mixed",
            "trainer.compile": trainer["compile"] and "is untried with shards",
            "training.micro_batches": training["micro_batches"] > 1 and "would gather every shard once a part",
            "training.ema_device": training["ema_device"] == "cpu" and "is untried with shards",
        }
    for key, reason in cannot.items():
        if reason:
            raise UserError(f"strategy=fsdp: {key} {reason}; give strategy=ddp")


def one_line(error: Exception, recipe: str, overrides: list[str]) -> str:
    """Hydra's complaint in one line; for an unknown key or noun, the nearest known one."""
    text, where = f"{error}\n{error.__cause__ or ''}", getattr(error, "full_key", None)
    if isinstance(error, MissingMandatoryValue):
        return f"{where} has no value: give {where}=..."
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; a value that holds =, a comma or a bracket needs quotes of its own"
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        return f"{several[1]}: a run has one value; several are for a study (make sweep), and a list is [a,b]"
    absent = re.search(r"Could not find '(.+)/([^/']+)'", text)
    if absent:
        noun, name = absent.groups()
        return f"there is no {noun}={name}; {hint(name, sorted(path.stem for path in (CONFIGS / noun).glob('*.yaml')))}"
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if unknown is None or not overrides:
        return first_line(error)
    key = unknown[1] or unknown[2]
    known = settings(read_recipe(recipe, []))
    at_root = ", ".join(k for k in known if "." not in k)
    return f"there is no setting {key}; {hint(key, known, f'at the root there are {at_root}')}"


def settings(config: dict[str, Any], prefix: str = "") -> list[str]:
    """All dotted keys."""
    keys = []
    for key, value in config.items():
        keys += [prefix + key, *settings(value, f"{prefix}{key}.")] if isinstance(value, dict) else [prefix + key]
    return [key for key in keys if not key.rpartition(".")[2].startswith("_")]


def run_name(recipe: str, overrides: list[str]) -> str:
    """recipe__key-value__... in the order given, hashed where it would be too long for a file system."""
    told = telling(overrides)
    name = "__".join([recipe, *(re.sub(r"[^\w.-]", "-", o) for o in told)])
    return name if len(name) <= 120 else f"{recipe}__{sha256(name.encode()).hexdigest()[:12]}"


def telling(overrides: list[str]) -> list[str]:
    """Those that make another run, not only another place."""
    return [o for o in overrides if o.split("=")[0].lstrip("+~").removeprefix("training.") not in PLACES]


def differing(overrides: list[str]) -> list[str]:
    """Those that make it another experiment than its recipe: not another seed, machine or copy of the data."""
    return [o for o in telling(overrides) if o.split("=")[0].lstrip("+~") not in ALIKE]


def digest(config: dict[str, Any]) -> str:
    """Twelve hex digits of the resolved config, without places and options at rest; a single device goes unsaid."""
    if config.get("strategy") == {"_target_": SINGLE}:
        config = {key: value for key, value in config.items() if key != "strategy"}
    return sha256(json.dumps(without_places(config), sort_keys=True).encode()).hexdigest()[:12]


def without_places(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    told = {key: value for key, value in node.items() if key not in PLACES and not at_rest(key, value)}
    return {key: without_places(value) for key, value in told.items()}


def at_rest(key: str, value: Any) -> bool:
    return key in UNSAID and type(value) is type(UNSAID[key]) and value == UNSAID[key]


def parse_arguments(arguments: list[str], default: str = "digits_fgm") -> tuple[str, list[str]]:
    """The recipe, given as experiment=<name>, and the remaining overrides."""
    wrong = [a for a in arguments if "=" not in a]
    if {"-m", "--multirun"} & set(wrong):
        raise UserError(
            f"{wrong[0]}: one process is one run, whose devices several cannot share: give a command for each value, "
            "or let a launcher (joblib, submitit) or W&B's agents start them"
        )
    if wrong:
        raise UserError(f"{wrong[0]!r} is not of the form key=value")
    named = [a.split("=", 1)[1] for a in arguments if a.startswith("experiment=")]
    return (named or [default])[-1] or default, [a for a in arguments if not a.startswith("experiment=")]


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"{arguments[0]!r}: fgm.cli.config takes nothing")
    for name in recipes():
        print(f"{name}: {digest(read_recipe(name, []))}")


if __name__ == "__main__":
    entry(main, __doc__)
