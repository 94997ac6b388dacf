"""What memory a distillation needs, and which GPUs hold it: python -m fgm.cli.memory experiment=sd3_fgm [key=value ...]

record=true                    append a row to experiments/memory/runs.jsonl (experiments=<folder> for another)

Nothing is loaded: the recipe's own training step runs on tensors without content, and Stable Diffusion 3's shape is
known. See training/footprint.py for what is counted and what is not.
"""

from pathlib import Path
from typing import Any

from rich.table import Table

from fgm.cli.arguments import split, yes
from fgm.cli.config import parse_arguments, read_recipe, telling
from fgm.cli.recording import provenance
from fgm.utils.errors import UserError, entry
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, append_row

OWN = {"record": "false"}
COUNTED = ("Single", "DistributedCopies")


def main(arguments: list[str]) -> None:
    own, rest = split(arguments, OWN)
    recorded, (recipe, overrides) = yes(own, "record"), parse_arguments(rest)
    config = read_recipe(recipe, overrides)
    if "t_star" not in config["method"]:
        raise UserError(f"{config['recipe']}: the memory of distillations alone is counted")
    strategy = config["strategy"]["_target_"].rpartition(".")[2]
    if strategy not in COUNTED:
        raise UserError("the memory of one device that holds everything is counted: give strategy=single or ddp")
    found = footprint(config, copies=strategy == "DistributedCopies")
    tell(found, config)
    if recorded:
        append_row(Path(config["experiments"]) / "memory" / "runs.jsonl", row_of(found, config, overrides))


def footprint(config: dict[str, Any], copies: bool = False) -> Any:
    """
    Raises:
        UserError: the recipe is wrong, or needs files that are not here.
    """
    from fgm.cli.build import build_module
    from fgm.cli.synthetic import without_files
    from fgm.training.footprint import of_distillation

    config = without_files(config)
    return of_distillation(lambda: build_module(config), config["trainer"]["precision"], copies)


def tell(footprint: Any, config: dict[str, Any]) -> None:
    from fgm.training.footprint import GPUS

    table = Table("part", "GiB", title=f"{config['recipe']}, {setting(config)}")
    for part, gib in parts(footprint).items():
        table.add_row(part, f"{gib:.3g}")
    console = plain_console()
    console.print(table)
    gpus = [f"{gpu} ({GPUS[gpu]} GiB)" for gpu in footprint.fits()]
    console.print(f"fits on {', '.join(gpus)}" if gpus else "fits on no GPU that is known: make the batch smaller")


def parts(footprint: Any) -> dict[str, float]:
    """In GiB."""
    names = ("weights", "gradients", "optimizer", "activations", "total")
    return {name: getattr(footprint, name) / 2**30 for name in names}


def setting(config: dict[str, Any]) -> str:
    batch, micro_batches = config["training"]["batch_size"], config["training"]["micro_batches"]
    told = f"batch {batch} a device" + (f", in {micro_batches} parts" if micro_batches > 1 else "")
    checkpointing = config["network"].get("checkpointing")
    return told + (
        "" if checkpointing is None else f", {'with' if checkpointing else 'without'} gradient checkpointing"
    )


def row_of(footprint: Any, config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A measurement in GiB for each part, and for the memory of a GPU that is sure to hold it."""
    protocol, n = ", ".join([setting(config), *telling(overrides)]), config["training"]["batch_size"]
    gib = {f"{part}_gib": value for part, value in parts(footprint).items()} | {"gpu_gib": footprint.needed / 2**30}
    results = [Measurement(name, value, n, protocol).row() for name, value in gib.items()]
    return provenance(config) | {"subject": "memory", "device": "counted, on none", "results": results}


if __name__ == "__main__":
    entry(main, __doc__)
