"""From an experiment's name and overrides to one resolved and checked config, its digest and its run directory.

python -m fgm.cli.config composes every experiment and prints its digest.

An experiment is configs/experiment/<name>.yaml, a few values over the nodes that the other groups of configs/ define.
A run is identified by its resolved config without IGNORED: equal configs share a run directory, however they were
written, so that the same command again resumes.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import NonNegativeInt

from fgm.cli.checks import check, check_arguments
from fgm.cli.messages import CONFIGS, one_line_errors
from fgm.utils.errors import UserError, entry, require_installed

DEFAULT = "digits_fgm"
IGNORED = (  # dotted paths that do not change what a run computes: where it writes, how often it reports, on what
    "outputs", "experiments", "run_dir", "logger", "study", "record", "differs", "resolved", "allow_world_size_change", "strategy",
    "trainer.accelerator", "trainer.devices", "training.log_every_n_steps", "training.save_every_n_steps", "training.save_every_minutes",
    "training.keep_every_n_steps", "evaluation.every", "data.download", "teacher.outputs", "teacher.experiments", "teacher.train",
)  # fmt: skip
SAME_EXPERIMENT = ("seed", "data.directory")  # another run, but not another experiment
LONGEST = 100  # bytes of a run directory's name


@dataclass(frozen=True)
class Root:
    """The keys of a config.

    Attributes:
        differs: key=value of what makes the run another experiment than the one it is named after.
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
    experiment: str
    run_dir: str
    seed: NonNegativeInt
    logger: Any
    callbacks: Any
    outputs: str
    experiments: str
    record: bool
    allow_world_size_change: bool
    differs: list[str]


def experiment_names() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def compose_experiment(experiment: str, overrides: list[str]) -> dict[str, Any]:
    """Return the resolved and checked config of an experiment, as plain containers.

    Raises:
        UserError: unknown experiment, unknown key, wrong type or value out of range.
    """
    return resolved(composed(experiment, overrides), experiment)


def composed(experiment: str, overrides: Iterable[str]) -> DictConfig:
    """Compose by Hydra; inside a Hydra job with its search path, which --config-dir extends."""
    with one_line_errors(lambda: keys_of(experiment)), search_path():
        return compose("config", overrides=[f"experiment={experiment}", *overrides])


@contextmanager
def search_path() -> Iterator[None]:
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def resolved(composed_config: DictConfig, experiment: str) -> dict[str, Any]:
    """Resolve interpolations, add run_dir and differs, and check every value."""
    with one_line_errors(lambda: keys_of(experiment)):
        config: Any = OmegaConf.to_container(composed_config, resolve=True, throw_on_missing=True)
    config |= {"experiment": experiment, "teacher": config.get("teacher") or None, "differs": []}
    study = config.pop("study", None)
    require_supported(config)
    for folder in ("outputs", "experiments"):
        if config[folder] == "":
            raise UserError(f"{folder}= is empty: give a folder, or leave it out")
    check_arguments(config | {"run_dir": config["run_dir"] or ""}, Root, "a config", "")
    known = {"precision": "32-true"} if config["trainer"]["precision"] == "auto" else {}  # Lightning has no auto
    check(config | {"trainer": config["trainer"] | known})
    changed = changes(plain(experiment), config)
    config["differs"] = [f"{key}={text(value)}" for key, value in changed.items() if key not in SAME_EXPERIMENT]
    folder = f"{config['outputs']}/{study['name']}" if study else config["outputs"]
    config["run_dir"] = config["run_dir"] or f"{folder}/{run_name(experiment, changed)}"
    return config | ({"study": study} if study else {})


def plain(experiment: str) -> dict[str, Any]:
    """Return the experiment's config without overrides, in which a value that only a user can give stays as it is."""
    unresolved = composed(experiment, [])
    config: Any = OmegaConf.to_container(unresolved, resolve=False)
    for key in config:
        with suppress(OmegaConfBaseException):
            node = unresolved[key]
            config[key] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return config | {"experiment": experiment, "teacher": config.get("teacher") or None}


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the flat part of a config that identifies a run: dotted keys, without IGNORED, 1.0 written as 1."""
    kept = {key: value for key, value in flat(config) if not any(within(key, ignored) for ignored in IGNORED)}
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in kept.items()
    }


def within(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def digest(config: dict[str, Any]) -> str:
    """Return twelve hex digits of the config's identity."""
    return sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]


def changes(base: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the dotted keys in which a config's identity differs from a base's, sorted; None for those it lacks."""
    old, new = identity(base), identity(config)
    return {
        key: new.get(key) for key in sorted({*old, *new}) if (key in old, old.get(key)) != (key in new, new.get(key))
    }


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_name(experiment: str, changed: dict[str, Any]) -> str:
    """Return <experiment>[__<key>-<value>...], of at most LONGEST bytes, with a digest if the words do not say it all.

    A node whose _target_ changes is shown by that alone.
    """
    replaced = [key.removesuffix("_target_") for key in changed if key.endswith("_target_")]
    shown = {
        key: value for key, value in changed.items() if key.endswith("_target_") or not key.startswith(tuple(replaced))
    }
    words, complete = [], not replaced
    for key, value in shown.items():
        word = f"{key}-{text(value)}"
        if key.endswith("._target_"):
            word = f"{key.removesuffix('._target_')}-{text(value).rpartition('.')[2]}"
        safe = re.sub(r"[^\w.-]", "-", word, flags=re.ASCII)
        words.append(safe)
        complete = complete and safe == word
    name = "__".join([experiment, *words])
    if complete and len(name.encode()) <= LONGEST:
        return name
    content = changed if len(experiment.encode()) < LONGEST - 14 else [experiment, changed]  # which the name cuts
    suffix = "__" + sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return name.encode()[: LONGEST - len(suffix)].decode(errors="ignore").rstrip("_") + suffix


def keys_of(experiment: str) -> list[str]:
    """List the dotted keys of an experiment's config, nodes included."""

    def below(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, value in node.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from below(value, f"{prefix}{key}.")

    with search_path():
        config: Any = OmegaConf.to_container(compose("config", [f"experiment={experiment}"]), resolve=False)
    return [key for key in below(config) if not key.rpartition(".")[2].startswith("_")]


def require_extras(node: Any) -> None:
    """
    Raises:
        UserError: an optimizer below node needs a package that is not installed.
    """
    if isinstance(node, dict):
        if node.get("kernel") == "eight_bit":
            require_installed("bitsandbytes", "optimizer.kernel = eight_bit")
        for value in node.values():
            require_extras(value)


def require_supported(config: dict[str, Any]) -> None:
    """Refuse what would lose data or fail late; values of the wrong type are left to check."""
    method, training, devices = config["method"], config["training"], config["trainer"]["devices"]
    precision, strategy = config["trainer"]["precision"], config["strategy"].get("_target_")
    if precision in ("bf16-true", "16-true", "16-mixed"):
        raise UserError(
            f"trainer.precision = {precision}: give bf16-mixed. bf16-true makes times and noise "
            "bfloat16 (t = 0.737 reaches the network as 0.740) and loses updates (a step of 1e-5 on a weight of 0.02 "
            "rounds to nothing); float16 overflows in Stable Diffusion 3"
        )
    if strategy == "fgm.training.distributed.Single" and isinstance(devices, int) and devices > 1:
        raise UserError(f"trainer.devices = {devices} needs a strategy for several: give strategy=ddp or fsdp")
    if strategy != "fgm.training.distributed.FSDP":
        return
    for key, given, reason in (
        ("method.adapters", method.get("adapters"), "shares one network, which every device holds whole"),
        ("method.discriminator", method.get("discriminator"), "reads a network at its middle, where its shards are apart"),
        ("trainer.precision", precision == "64-true", "must be 32-true or bf16-mixed"),
        ("training.compile", training["compile"], "is untried with shards"),
        ("training.micro_batches", training["micro_batches"] > 1, "would gather every shard once a part"),
        ("training.ema_device", training["ema_device"] == "cpu", "is untried with shards"),
    ):  # fmt: skip
        if given:
            raise UserError(f"strategy=fsdp: {key} {reason}; give strategy=ddp")


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"{arguments[0]!r}: fgm.cli.config takes no arguments")
    for name in experiment_names():
        print(f"{name}: {digest(compose_experiment(name, []))}")


if __name__ == "__main__":
    entry(main, __doc__)
