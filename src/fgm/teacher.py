"""Where a teacher comes from, a config's `teacher` node: a run, by the name of its recipe, weights that come with the
suite, or a file of weights.

Any other `_target_` that returns a velocity network, velocity(x_t, t, condition), is a teacher as well.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from fgm import shipped
from fgm.cards import require_checkpoint
from fgm.config import read_recipe
from fgm.errors import Refusal
from fgm.run_config import read_config

WEIGHTS = "teacher.safetensors"


def run_of(recipe: str, overrides: list[str], outputs: str, experiments: str) -> dict[str, Any]:
    """The config of the run that trains, or has trained, the teacher."""
    return read_recipe(recipe, [*overrides, f"outputs={outputs}", f"experiments={experiments}"])


def from_run(
    recipe: str,
    overrides: list[str],
    train: bool,
    guidance: Annotated[float, "[0, inf)"],
    outputs: str,
    experiments: str,
) -> Any:
    """The averaged network of a teacher's run, trained first if it is not there.

    Args:
        recipe, overrides: which run.
        train: whether to train it where it is missing.
        guidance: scale of classifier-free guidance; 1 for none.
        outputs, experiments: as in the root config.
    """
    config = run_of(recipe, overrides, outputs, experiments)
    weights = Path(config["run_dir"]) / WEIGHTS
    from fgm import train as command  # which needs this module

    if not command.is_done(config, weights.parent):
        command.train(config)
    return from_file(str(weights), read_config(weights.parent / "config.yaml", config)["network"], guidance)


def run_named(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """The config of the run that a `teacher` node names, if it names one."""
    if not node or node["_target_"] != "fgm.teacher.from_run":
        return None
    return run_of(*(node[key] for key in ("recipe", "overrides", "outputs", "experiments")))


def run_dir(node: dict[str, Any] | None) -> Path | None:
    config = run_named(node)
    return Path(config["run_dir"]) if config else None


def require(node: dict[str, Any] | None) -> None:
    """Refuse a teacher that is missing and may not be trained; cheap, before anything heavy is imported."""
    directory = run_dir(node)
    if node and directory and not node["train"] and not (directory / WEIGHTS).exists():
        raise Refusal(
            f"the teacher {directory / WEIGHTS} is missing and teacher.train is false: make train EXP={node['recipe']}"
        )
    if node and directory and not (directory / WEIGHTS).exists():
        require_one_process(node)
    if node and node["_target_"] == "fgm.teacher.from_shipped" and node["recipe"] not in shipped.names():
        known = ", ".join(shipped.names())
        raise Refusal(f"teacher.recipe = {node['recipe']}: no such weights come with the suite; there are {known}")
    if node and node["_target_"] == "fgm.teacher.from_file" and not Path(node["file"]).is_file():
        raise Refusal(f"teacher.file: there is no file {node['file']}")
    if node and "checkpoint" in node:
        require_checkpoint(node["checkpoint"], node.get("sha256"))


def require_one_process(node: dict[str, Any]) -> None:
    """A teacher is trained on the way by one process on one device; others start processes of their own."""
    config: Any = run_named(node)
    several = config["strategy"]["_target_"] != "fgm.training.strategies.Single"
    if several or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        told = f' ARGS="{" ".join(node["overrides"])}"' if node["overrides"] else ""
        raise Refusal(
            f"the teacher {node['recipe']} is not trained yet, and cannot be on the way to a run of several processes: "
            f"make train EXP={node['recipe']}{told} first"
        )


def from_shipped(recipe: str, guidance: Annotated[float, "[0, inf)"] = 1.0) -> Any:
    """Weights that come with the suite, and the network of their run.

    Args:
        recipe: of that run.
        guidance: scale of classifier-free guidance; 1 for none.
    """
    return from_file(str(shipped.weights(recipe)), shipped.run(recipe)["config"]["network"], guidance)


def from_file(file: str, network: Any, guidance: Annotated[float, "[0, inf)"] = 1.0) -> Any:
    """A network with the weights of a .safetensors file.

    Args:
        file: its path.
        network: config node of the architecture, or a network.
        guidance: scale of classifier-free guidance; 1 for none.
    """
    from hydra.utils import instantiate
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fgm.networks.guidance import guided
    from fgm.networks.lora import trained_part

    net = instantiate(network) if isinstance(network, dict) else network
    try:
        trained_part(net).load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise Refusal(f"{file} does not hold the weights of this {type(net).__name__}: {reason}") from error
    return guided(net, guidance)


def untrained(network: Any, guidance: Annotated[float, "[0, inf)"] = 1.0) -> Any:
    """A network of random weights, always the same and none of them zero: what is timed or counted needs no others."""
    import torch
    from hydra.utils import instantiate

    from fgm.networks.guidance import guided

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = instantiate(network) if isinstance(network, dict) else network
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return guided(net, guidance)
