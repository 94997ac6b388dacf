"""Estimate the memory of a distillation, and which GPUs hold it: python -m fgm.cli.memory experiment=sd3_fgm [key=value ...]

record=true                    append a row to experiments/memory/runs.jsonl (experiments=<folder> for another)

Nothing is loaded: the experiment's own training step runs on tensors without content, and the shapes of published
models are known. See fgm/training/memory_estimate.py for what is counted and what is not.
"""

from pathlib import Path
from typing import Any

from rich.table import Table

from fgm.cli.build import build_module
from fgm.cli.command import Command, NoSettings
from fgm.cli.runs import provenance
from fgm.cli.synthetic import without_files
from fgm.training.memory_estimate import GIB, GPUS, MemoryEstimate, estimate_memory
from fgm.utils.errors import UserError
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, append_row

PARTS = ("weights", "gradients", "optimizer", "activations", "total")


def run(config: dict[str, Any], settings: NoSettings) -> None:
    del settings
    if "t_star" not in config["method"]:
        raise UserError(f"{config['experiment']}: only the memory of distillations is counted")
    strategy = config["strategy"]["_target_"].rpartition(".")[2]
    if strategy not in ("Single", "DDP"):
        raise UserError("only a device that holds everything is counted: give strategy=single or ddp")
    made = without_files(config)
    ddp, precision = strategy == "DDP", config["trainer"]["precision"]
    estimate = estimate_memory(lambda: build_module(made), precision, ddp)
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


main = Command("memory", run)

if __name__ == "__main__":
    main.main()
