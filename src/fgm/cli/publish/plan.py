"""What a run's pipeline is made of, and what is missing for it; imports neither torch nor diffusers."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fgm.cli import teacher
from fgm.cli.loading import generator_network, weights_file
from fgm.data.encodings import ENCODERS, INDEX, CacheIndex
from fgm.networks.sd3 import BILLIONS, require_parts
from fgm.utils.errors import UserError
from fgm.utils.pretrained import fingerprint, locate, weight_files

PUBLISHED = "fgm.networks.sd3.pretrained"
ELSE = "choose format=png, edm or geneval"


@dataclass(frozen=True)
class Plan:
    """Of one run.

    Attributes:
        config: the run's.
        node: the config of the network whose transformer, VAE and encoders are the pipeline's.
        directory: where those lie.
        encoders: that made the prompts which the generator was trained on.
    """

    config: dict[str, Any]
    node: dict[str, Any]
    directory: Path
    encoders: tuple[str, ...]

    @property
    def method(self) -> dict[str, Any]:
        return self.config["method"]

    @cached_property
    def adapters(self) -> Any:
        """The run's LoRA, or None."""
        from hydra.utils import instantiate  # and with it torch

        return instantiate(self.method["adapters"]) if self.method.get("adapters") else None

    @property
    def generator(self) -> Path:
        return weights_file(self.config)

    @property
    def size(self) -> int:
        """Pixels of a picture's side."""
        return self.node["size"]

    @property
    def max_length(self) -> int:
        """T5's tokens."""
        return self.node["text"]["cache"]["max_length"]

    @property
    def steps(self) -> int:
        return self.method.get("steps", 1)

    @property
    def teacher_name(self) -> str:
        """A hub id, or the name of a directory without its place."""
        return self.node["model"] if self.node["model"] in BILLIONS else Path(self.node["model"]).name

    @cached_property
    def teacher_fingerprint(self) -> str:
        return fingerprint(weight_files(self.directory / "transformer"))

    @cached_property
    def channels(self) -> int:
        """Of a latent."""
        return json.loads((self.directory / "transformer" / "config.json").read_text())["in_channels"]


def planned(config: dict[str, Any]) -> Plan:
    """
    Raises:
        UserError: the run is no distilled Stable Diffusion 3, or a part of its pipeline is not on this machine.
    """
    node = network_of(config)
    if weights_file(config).name == teacher.WEIGHTS or node["_target_"] != PUBLISHED:
        raise UserError(f"format = diffusers: {config['recipe']} distils no published Stable Diffusion 3; {ELSE}")
    if config["path"]["_target_"] != "fgm.flow.paths.RectifiedPath":
        raise UserError(f"format = diffusers: its schedulers know the rectified path alone; {ELSE}")
    encoders = encoders_of(node)
    directory = require_parts(node["model"], ("transformer", "vae", *encoders))
    for words in (directory / name.replace("text_encoder", "tokenizer") for name in encoders):
        if not words.is_dir():
            raise UserError(f"{words} is missing: it should hold a tokenizer; download it again")
    return Plan(config, node, directory, encoders)


def network_of(config: dict[str, Any]) -> dict[str, Any]:
    """The node of the generator's architecture; with adapters, of the network that they change."""
    if config["network"]["_target_"] != PUBLISHED:
        return config["network"]
    if not config["method"].get("adapters"):
        return generator_network(config)
    return config["teacher"].get("net", config["teacher"])


def encoders_of(node: dict[str, Any]) -> tuple[str, ...]:
    """Those of the run's encoded prompts, where these are here; else those that are.

    Raises:
        UserError: one of both CLIPs is not among them; diffusers' pipeline goes without T5 alone.
    """
    cache = node["text"]["cache"]
    index = Path(cache["directory"]) / INDEX
    here = [name for name in ENCODERS if weight_files(locate(node["model"]) / name)]
    found = list(CacheIndex.from_file(index).encoders) if index.is_file() else here
    lacking = [name for name in ENCODERS[:2] if name not in found]
    if lacking:
        raise UserError(
            f"format = diffusers: {' and '.join(lacking)} made no part of the encoded prompts, and diffusers' pipeline "
            f"goes without T5 alone; {ELSE}"
        )
    return tuple(name for name in ENCODERS if name in found)
