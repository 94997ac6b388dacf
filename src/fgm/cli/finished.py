"""A finished run as objects: its config and the sampler whose weights it exported."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fgm.cli import teacher
from fgm.cli.arguments import split
from fgm.cli.config import digest, parse_arguments, read_recipe, telling
from fgm.cli.evaluators import make
from fgm.cli.run_config import known_targets, read_config
from fgm.teachers import bundled
from fgm.utils.errors import UserError

GENERATOR = "generator.safetensors"
BUNDLED_WEIGHTS = "bundled_weights"  # key of a config whose run is not here


def finished_run(arguments: list[str], own: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The config of the run that the arguments name, and the command's own settings out of them.

    Args:
        arguments: experiment=, overrides of the recipe as given to `make train`, and the command's own key=value.
        own: the command's settings with their defaults.

    Raises:
        UserError: that run is not there.
    """
    given, rest = split(arguments, own)
    recipe, overrides = parse_arguments(rest)
    asked = recipe_asked(recipe, overrides, own)
    run_dir = Path(asked["run_dir"])
    if (run_dir / "results.json").exists():
        return read_config(run_dir / "config.yaml", asked) | {"run_dir": str(run_dir)}, given
    if recipe not in bundled.names() or telling(overrides):
        raise UserError(
            f"{run_dir} holds no finished run: make train EXP={recipe}"
            + (f' ARGS="{" ".join(overrides)}"' if overrides else "")
        )
    print(f"{run_dir} holds no finished run: taking the weights that come with the suite ({recipe})")
    places = {"run_dir": str(run_dir), BUNDLED_WEIGHTS: str(bundled.weights(recipe))}
    return bundled.run(recipe)["config"] | places, given


def recipe_asked(recipe: str, overrides: list[str], own: Iterable[str]) -> dict[str, Any]:
    """read_recipe, whose refusal of an unknown key tells the command's own as well."""
    try:
        return read_recipe(recipe, overrides)
    except UserError as refusal:
        told = f"; the command's own are {', '.join(own)}" if str(refusal).startswith("there is no setting") else ""
        raise UserError(f"{refusal}{told}") from refusal


def load_source(config: dict[str, Any]) -> Any:
    """What the run is for, as a Sampler: the averaged generator, or the teacher's ODE."""
    from hydra.utils import instantiate

    from fgm.evaluation.sampling import generator_sampler, ode_sampler
    from fgm.networks.generator import FewStepGenerator
    from fgm.networks.guidance import with_guidance

    weights, method, path = weights_file(config), config["method"], instantiate(config["path"])
    if "t_star" not in method:
        net = teacher.from_file(str(weights), config["network"])
        return ode_sampler(with_guidance(net, method.get("guidance", 1.0)), path, method["steps"][0])
    std, steps = instantiate(config["data"]).std, method.get("steps", 1)
    net = adapted(config) if method.get("adapters") else architecture(config)
    net = teacher.from_file(str(weights), net)
    return generator_sampler(FewStepGenerator(net, path, method["t_star"], method["c_in"], std, steps).eval(), "ema")


def weights_file(config: dict[str, Any]) -> Path:
    """The run's exported weights, there or not, or those that come with the suite in their place."""
    if BUNDLED_WEIGHTS in config:
        return Path(config[BUNDLED_WEIGHTS])
    return Path(config["run_dir"]) / (GENERATOR if "t_star" in config["method"] else teacher.WEIGHTS)


def sampler_source(config: dict[str, Any], evaluation: Any, data: Any, n: int, seed: int, device: Any) -> Any:
    """The run's samples 0 to n - 1 as an evaluation asks for them: those that training measures at its end."""
    source = load_source(config)
    source.sampler.to(device)
    return evaluation.source(source, data, device, n, seed, config_digest=digest(config))


def adapted(config: dict[str, Any]) -> Any:
    """The teacher's network under a fresh adapter of the generator's."""
    from hydra.utils import instantiate

    from fgm.networks.guidance import unwrap_guidance

    teacher.require(config["teacher"] | {"train": False})
    net = unwrap_guidance(instantiate(config["teacher"]))
    return instantiate(config["method"]["adapters"]).networks(net, config["seed"], ("generator",))[0]


def architecture(config: dict[str, Any]) -> Any:
    """The generator's network, or its node: that of a teacher of one's own, which no config tells, is built anew."""
    node = config["teacher"]
    if config["method"]["generator_init"] != "teacher" or node["_target_"] in known_targets():
        return generator_network(config)
    from fgm.networks.guidance import unwrap_guidance

    return unwrap_guidance(make(node, "teacher"))


def generator_network(config: dict[str, Any]) -> dict[str, Any]:
    """The generator has the teacher's architecture where it started from the teacher."""
    teacher_dir = teacher.run_dir(config["teacher"])
    if config["method"]["generator_init"] == "teacher" and teacher_dir:
        return read_config(teacher_dir / "config.yaml", config)["network"]
    return config["network"]
