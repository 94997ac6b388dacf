"""Configs that read no files, for what is timed or counted but not measured (benchmarks, memory estimate).

untrained        random weights for a teacher that would be read or trained, random encodings for cached prompts
without_files    also blank data, and eight-bit Adam moments without bitsandbytes
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fgm.cli import teacher
from fgm.cli.checks import make
from fgm.data.encodings import CLIP_LENGTH
from fgm.networks import VelocityModel
from fgm.networks.guidance import with_guidance
from fgm.networks.sd3 import architecture
from fgm.teachers import bundled
from fgm.utils.pipelines import FACTOR
from fgm.utils.random import keyed_generator

WITH_WEIGHTS = (f"{__name__}.random_weights", "fgm.networks.guidance.ClassifierFreeGuidance")
NO_EVALUATION = {"_target_": "fgm.evaluation.evaluator.Evaluator", "suite": {"_target_": "builtins.object"}, "every": 0}
BLOCK, SMALL = 256, 4096  # of bitsandbytes: elements that share a largest value, fewest that have one-byte moments


def untrained(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with random weights, of the same architectures, for every teacher and prompt encoder."""
    network, node = config["network"], config["teacher"] or {}
    if network.get("random_init"):
        length, side = network["text"]["cache"]["max_length"], network["size"] // FACTOR
        text = {"_target_": f"{__name__}.RandomText", "model": network["model"], "max_length": length}
        network = network | {"text": text}
        node = node | {"net": network} if node.get("net", {}).get("random_init") else node
        data = blank([architecture(network["model"])["in_channels"], side, side], 0, [])
        config = config | {"network": network, "data": data}
    node = without_weights(node, network)
    start = "teacher" if node.get("_target_") in WITH_WEIGHTS else "random"
    method = config["method"] | {"generator_init": start, "online_init": start}
    return config | {"teacher": node, "method": method, "evaluation": NO_EVALUATION}


def without_weights(node: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """Return a teacher of the same architecture: its own run's, or that of `network`, which reads the same files."""
    kind = node.get("_target_", "").removeprefix("fgm.cli.teacher.")
    if kind == "from_run":
        network = teacher.run_of(node)["network"]
    elif kind == "from_bundled":
        teacher.require(node)
        network = bundled.run(node["experiment"])["config"]["network"]
    elif kind != "from_file" and "checkpoint" not in node:
        return node
    return {"_target_": f"{__name__}.random_weights", "net": network, "guidance": node.get("guidance", 1.0)}


def without_files(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of the same shapes that needs no file at all."""
    config = untrained(stripped(config))
    data = make(config["data"], "data")
    condition = data.conditions(1, keyed_generator("shapes", index=0))
    shape = None if condition is None else list(condition.shape[1:])
    return config | {"data": blank(list(data.shape), data.num_classes, shape)}


def blank(shape: list[int], num_classes: int, condition: list[int] | None) -> dict[str, Any]:
    return {"_target_": f"{__name__}.BlankData", "shape": shape, "num_classes": num_classes, "condition": condition}


def stripped(node: Any) -> Any:
    """Remove what reads files: real images, Stable Diffusion 3's weights, bitsandbytes."""
    if not isinstance(node, dict):
        return node
    node = {key: stripped(value) for key, value in node.items()}
    if str(node.get("_target_")).startswith("fgm.training.") and "data" in node:
        return node | {"data": None}  # the experiment's own, of the same shape
    if node.get("_target_") == "fgm.networks.sd3.pretrained":
        return node | {"random_init": True}
    if node.get("kernel") == "eight_bit":
        return node | {"_target_": f"{__name__}.byte_moments"}
    return node


@dataclass(frozen=True)
class BlankData:
    """Images (n, *shape) and conditions (n, *condition) without content."""

    shape: list[int]
    num_classes: int
    condition: list[int] | None
    std: float = 1.0

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        return torch.empty(n, *self.shape), self.conditions(n, generator)

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        if self.condition is None:
            return None
        return torch.zeros(n, *self.condition, dtype=torch.int64, device=generator.device)


class RandomText(nn.Module):
    """Prompts (n,) int64, all 0 -> words (n, 77 + max_length, width) and pooled (n, width), as `model` reads them."""

    def __init__(self, model: str, max_length: int) -> None:
        super().__init__()
        shape, noise = architecture(model), torch.Generator().manual_seed(0)
        words, pooled = (CLIP_LENGTH + max_length, shape["joint_attention_dim"]), (shape["pooled_projection_dim"],)
        for name, size in (("words", words), ("pooled", pooled)):
            self.register_buffer(name, torch.randn(1, *size, generator=noise).bfloat16(), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_buffer("words")[prompts], self.get_buffer("pooled")[prompts]


@torch.no_grad()
def random_weights(net: VelocityModel, guidance: float) -> VelocityModel:
    """Return a fresh network in place of a trained one, without weights that are zero."""
    for p in net.parameters():
        p.add_(0.02 * torch.randn_like(p))
    return with_guidance(net, guidance)


class ByteMoments(Optimizer):
    """Allocates what bitsandbytes' Adam allocates, and steps nothing."""

    def step(self, closure: Any = None) -> None:
        del closure
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if not self.state[p]:
                small, blocks = p.numel() < SMALL, -(-p.numel() // BLOCK)
                state = {f"state{i}": torch.empty_like(p, dtype=p.dtype if small else torch.uint8) for i in (1, 2)}
                self.state[p] = state | ({} if small else {f"absmax{i}": torch.empty(blocks) for i in (1, 2)})


def byte_moments(net: nn.Module, lr: float, **settings: Any) -> Optimizer:
    del settings
    return ByteMoments(list(net.parameters()), {"lr": lr})
