"""A finished run as objects: its config and the sampler whose weights it exported."""

from pathlib import Path
from typing import Any

from fgm.cli import teacher
from fgm.cli.checks import make
from fgm.cli.config import digest
from fgm.cli.runs import BUNDLED_WEIGHTS, known_targets, read_config

GENERATOR = "generator.safetensors"


def load_source(config: dict[str, Any]) -> Any:
    """Return a finished run's Sampler: the averaged generator, or the teacher's ODE."""
    from fgm.evaluation.sampling import generator_sampler, ode_sampler
    from fgm.networks.generator import FewStepGenerator
    from fgm.networks.guidance import with_guidance

    weights, method, path = weights_file(config), config["method"], make(config["path"], "path")
    if "t_star" not in method:
        net = teacher.from_file(str(weights), config["network"])
        return ode_sampler(with_guidance(net, method.get("guidance", 1.0)), path, method["steps"][0])
    std, steps = make(config["data"], "data").std, method.get("steps", 1)
    net = adapted(config) if method.get("adapters") else architecture(config)
    net = teacher.from_file(str(weights), net)
    return generator_sampler(FewStepGenerator(net, path, method["t_star"], method["c_in"], std, steps).eval(), "ema")


def weights_file(config: dict[str, Any]) -> Path:
    """Return the path of the run's exported weights, or of the bundled ones."""
    if BUNDLED_WEIGHTS in config:
        return Path(config[BUNDLED_WEIGHTS])
    return Path(config["run_dir"]) / (GENERATOR if "t_star" in config["method"] else teacher.WEIGHTS)


def sampler_source(config: dict[str, Any], evaluation: Any, data: Any, n: int, seed: int, device: Any) -> Any:
    """Return the run's samples 0 to n - 1 for an evaluation, the same that training measures at its end."""
    source = load_source(config)
    source.model.to(device)
    return evaluation.source(source, data, device, n, seed, config_digest=digest(config))


def adapted(config: dict[str, Any]) -> Any:
    """Return the teacher's network with a fresh adapter of the generator."""
    from fgm.networks.guidance import unwrap_guidance

    teacher.require(config["teacher"] | {"train": False})
    net = unwrap_guidance(make(config["teacher"], "teacher"))
    return make(config["method"]["adapters"], "method.adapters").networks(net, config["seed"], ("generator",))[0]


def architecture(config: dict[str, Any]) -> Any:
    """Return the generator's network or its node; a user's own teacher, which no config describes, is built anew."""
    node = config["teacher"]
    if config["method"]["generator_init"] != "teacher" or node["_target_"] in known_targets():
        return generator_network(config)
    from fgm.networks.guidance import unwrap_guidance

    return unwrap_guidance(make(node, "teacher"))


def generator_network(config: dict[str, Any]) -> dict[str, Any]:
    """Return the generator's network node: the teacher's if it was initialised from its run."""
    teacher_dir = teacher.run_dir(config["teacher"])
    if config["method"]["generator_init"] == "teacher" and teacher_dir:
        return read_config(teacher_dir / "config.yaml", config)["network"]
    return config["network"]
