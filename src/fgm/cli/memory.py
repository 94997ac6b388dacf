"""Estimate the memory of a distillation, and which GPUs hold it: python -m fgm.cli.memory experiment=sd3_fgm [key=value ...]

record=true                    append a row to experiments/memory/runs.jsonl (experiments=<folder> for another)

Nothing is loaded: the experiment's own training step runs on tensors without content, and the shapes of published
models are known. See fgm/training/memory_estimate.py for what is counted and what is not. The second half of this file makes
configs that read no files, for what is counted or timed (benchmarks/) but not measured:

untrained        random weights for a teacher that would be read or trained, random encodings for cached prompts
without_files    also blank data, and eight-bit Adam moments without bitsandbytes
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from rich.table import Table
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fgm.cli import teacher
from fgm.cli.build import build_module
from fgm.cli.checks import make
from fgm.cli.command import Command, NoSettings
from fgm.cli.runs import provenance
from fgm.data.encodings import CLIP_LENGTH
from fgm.networks import VelocityModel
from fgm.networks.guidance import with_guidance
from fgm.networks.sd3 import architecture
from fgm.teachers import bundled
from fgm.training.memory_estimate import GIB, GPUS, MemoryEstimate, estimate_memory
from fgm.utils.errors import UserError
from fgm.utils.pipelines import FACTOR
from fgm.utils.printing import plain_console
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement, append_row

PARTS = ("weights", "gradients", "optimizer", "activations", "total")
MODULE = "fgm.cli.memory"  # also where it runs as __main__
WITH_WEIGHTS = (f"{MODULE}.random_weights", "fgm.networks.guidance.ClassifierFreeGuidance")
NO_EVALUATION = {"_target_": "fgm.evaluation.evaluator.Evaluator", "suite": {"_target_": "builtins.object"}, "every": 0}
BLOCK, SMALL = 256, 4096  # of bitsandbytes: elements that share a largest value, fewest that have one-byte moments


def run(config: dict[str, Any], settings: NoSettings) -> None:
    if "t_star" not in config["method"]:
        raise UserError(f"{config['experiment']}: only the memory of distillations is counted")
    strategy = config["strategy"]["_target_"].rpartition(".")[2]
    if strategy not in ("Single", "DDP"):
        raise UserError("only a device that holds everything is counted: give strategy=single or ddp")
    made = without_files(config)
    precision = config["trainer"]["precision"].replace("auto", "bf16-mixed")  # as on a GPU
    estimate = estimate_memory(lambda: build_module(made), precision, strategy == "DDP")
    report(estimate, config)
    if config["record"]:
        append_row(Path(config["experiments"]) / "memory" / "runs.jsonl", row_of(estimate, config))


def report(estimate: MemoryEstimate, config: dict[str, Any]) -> None:
    table = Table("part", "GiB", title=f"{config['experiment']}, {setting(config)}")
    for part in PARTS:
        table.add_row(part, f"{getattr(estimate, part) / GIB:.3g}")
    console = plain_console()
    console.print(table)
    gpus = [f"{gpu} ({GPUS[gpu]} GiB)" for gpu in estimate.fits()]
    console.print(f"fits on {', '.join(gpus)}" if gpus else "fits on no GPU that is known: make the batch smaller")


def setting(config: dict[str, Any]) -> str:
    batch, micro_batches = config["training"]["batch_size"], config["training"]["micro_batches"]
    checkpointing = config["network"].get("checkpointing")
    text = f"batch {batch} a device" + (f", in {micro_batches} parts" if micro_batches > 1 else "")
    return text + (
        "" if checkpointing is None else f", {'with' if checkpointing else 'without'} gradient checkpointing"
    )


def row_of(estimate: MemoryEstimate, config: dict[str, Any]) -> dict[str, Any]:
    """Return a row with a measurement in GiB for each part, and for the memory of a GPU that surely holds it."""
    protocol, n = ", ".join([setting(config), *config["differs"]]), config["training"]["batch_size"]
    values = {f"{part}_gib": getattr(estimate, part) / GIB for part in PARTS} | {"gpu_gib": estimate.needed / GIB}
    results = [Measurement(name, value, n, protocol).row() for name, value in values.items()]
    return provenance(config) | {"subject": "memory", "device": "counted, on none", "results": results}


def untrained(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with random weights, of the same architectures, for every teacher and prompt encoder."""
    network, node = config["network"], config["teacher"] or {}
    if network.get("random_init"):
        length, side = network["text"]["cache"]["max_length"], network["size"] // FACTOR
        text = {"_target_": f"{MODULE}.RandomText", "model": network["model"], "max_length": length}
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
    return {"_target_": f"{MODULE}.random_weights", "net": network, "guidance": node.get("guidance", 1.0)}


def without_files(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of the same shapes that needs no file at all."""
    config = untrained(stripped(config))
    data = make(config["data"], "data")
    condition = data.conditions(1, keyed_generator("shapes", index=0))
    shape = None if condition is None else list(condition.shape[1:])
    return config | {"data": blank(list(data.shape), data.num_classes, shape)}


def blank(shape: list[int], num_classes: int, condition: list[int] | None) -> dict[str, Any]:
    return {"_target_": f"{MODULE}.BlankData", "shape": shape, "num_classes": num_classes, "condition": condition}


def stripped(node: Any) -> Any:
    """Remove what reads files: real images, Stable Diffusion 3's weights, bitsandbytes."""
    if not isinstance(node, dict):
        return node
    node = {key: stripped(value) for key, value in node.items()}
    if str(node.get("_target_")).startswith("fgm.training.") and "data" in node:
        return node | {"data": None}  # the experiment's own, of the same shape
    if node.get("_target_") == "fgm.networks.sd3.pretrained":
        return node | {"random_init": True}
    if node.get("_target_") == "fgm.teachers.diffusers.adapter.pretrained":
        raise UserError("network=transformer: its encoded prompts are a file, without which nothing can be counted")
    if node.get("kernel") == "eight_bit":
        return node | {"_target_": f"{MODULE}.byte_moments"}
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


main = Command("memory", run)

if __name__ == "__main__":
    main.main()
