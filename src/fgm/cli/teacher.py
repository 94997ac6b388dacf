"""Where a teacher comes from, a config's `teacher` node: a run, by the name of its experiment, weights that come with the
suite, or a file of weights.

Any other `_target_` that returns a velocity network, velocity(x_t, t, condition), is a teacher as well.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat

from fgm.cli.config import compose_experiment
from fgm.cli.runs import read_config
from fgm.teachers import bundled
from fgm.utils.errors import UserError, hint, last_line
from fgm.utils.pickles import load_state
from fgm.utils.pretrained import require_checkpoint
from fgm.utils.validation import validated

WEIGHTS = "teacher.safetensors"


def run_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the run that trains, or has trained, the teacher of a from_run node."""
    places = [f"{key}={node[key]}" for key in ("outputs", "experiments")]
    return compose_experiment(node["experiment"], [*node["overrides"], *places])


@validated
def from_run(
    experiment: str,
    overrides: list[str],
    train: bool,
    guidance: NonNegativeFloat,
    outputs: str,
    experiments: str,
) -> Any:
    """The averaged network of a teacher's run.

    Args:
        experiment, overrides: which run.
        train: whether `make train` trains it first where it is missing.
        guidance: scale of classifier-free guidance; 1 for none.
        outputs, experiments: as in the root config.

    Raises:
        UserError: it is not there.
    """
    places = {"outputs": outputs, "experiments": experiments}
    config = run_of({"experiment": experiment, "overrides": overrides} | places)
    weights = Path(config["run_dir"]) / WEIGHTS
    if not weights.exists():
        raise UserError(f"the teacher {weights} is missing: make train EXP={experiment}")
    return from_file(str(weights), read_config(weights.parent / "config.yaml", config)["network"], guidance)


def run_named(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """The config of the run that a `teacher` node names, if it names one."""
    return run_of(node) if node and node["_target_"] == "fgm.cli.teacher.from_run" else None


def run_dir(node: dict[str, Any] | None) -> Path | None:
    config = run_named(node)
    return Path(config["run_dir"]) if config else None


def require(node: dict[str, Any] | None) -> None:
    """Refuse a teacher that is missing and may not be trained; cheap, before anything heavy is imported."""
    if not node:
        return
    kind = node["_target_"].removeprefix("fgm.cli.teacher.")
    if kind == "from_run":
        require_run(node)
    if kind == "from_bundled" and node["experiment"] not in bundled.names():
        other = hint(node["experiment"], bundled.names())
        raise UserError(f"teacher.experiment = {node['experiment']}: no such weights come with the suite; {other}")
    if kind == "from_file" and not Path(node["file"]).is_file():
        raise UserError(f"teacher.file: there is no file {node['file']}")
    if "checkpoint" in node:
        require_checkpoint(node["checkpoint"], node.get("sha256"))


def require_run(node: dict[str, Any]) -> None:
    """A finished one, or one that can be trained on the way: by one process, as several start further ones."""
    config, experiment = run_of(node), node["experiment"]
    if (Path(config["run_dir"]) / "results.json").exists():
        return
    if not node["train"]:
        raise UserError(
            f"the teacher {config['run_dir']} is missing and teacher.train is false: make train EXP={experiment}"
        )
    several = config["strategy"]["_target_"] != "fgm.training.distributed.Single"
    if several or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        told = f' ARGS="{" ".join(node["overrides"])}"' if node["overrides"] else ""
        raise UserError(
            f"the teacher {experiment} is not trained yet, and cannot be on the way to a run of several processes: "
            f"make train EXP={experiment}{told} first"
        )


@validated
def from_bundled(experiment: str, guidance: NonNegativeFloat = 1.0) -> Any:
    """Weights that come with the suite, and the network of their run.

    Args:
        experiment: of that run.
        guidance: scale of classifier-free guidance; 1 for none.
    """
    return from_file(str(bundled.weights(experiment)), bundled.run(experiment)["config"]["network"], guidance)


@validated
def from_file(file: str, network: Any, guidance: NonNegativeFloat = 1.0) -> Any:
    """A network with the weights of a .safetensors file, or of one of torch.save.

    Args:
        file: its path.
        network: config node of the architecture, or a network.
        guidance: scale of classifier-free guidance; 1 for none.

    Raises:
        UserError: there is no such file, or it holds anything else.
    """
    from hydra.utils import instantiate

    from fgm.networks.guidance import with_guidance
    from fgm.networks.lora import trainable_module

    net = instantiate(network) if isinstance(network, dict) else network
    module = trainable_module(net)
    state = load_state(Path(file), module.state_dict().keys())
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{file} does not hold the weights of this {type(net).__name__}: {last_line(error)}") from error
    return with_guidance(net, guidance)
