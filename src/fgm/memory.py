"""What memory a distillation needs, and which GPUs hold it: python -m fgm.memory experiment=sd3_fgm [key=value ...]

Nothing is loaded: the recipe's own training step runs on tensors without content, and Stable Diffusion 3's shape is
known. See benchmarks/footprint.py for what is counted and what is not.
"""

from typing import Any

from rich.console import Console
from rich.table import Table

from fgm.config import parse_arguments, read_recipe
from fgm.errors import Refusal, entry

COUNTED = ("Single", "DistributedCopies")


def main(arguments: list[str]) -> None:
    config = read_recipe(*parse_arguments(arguments))
    if "t_star" not in config["method"]:
        raise Refusal(f"{config['recipe']}: the memory of distillations alone is counted")
    strategy = config["strategy"]["_target_"].rpartition(".")[2]
    if strategy not in COUNTED:
        raise Refusal("the memory of one device that holds everything is counted: give strategy=single or ddp")
    tell(footprint(config, copies=strategy == "DistributedCopies"), config)


def footprint(config: dict[str, Any], copies: bool = False) -> Any:
    """
    Raises:
        Refusal: the recipe is wrong, or needs files that are not here.
    """
    from fgm.benchmarks.footprint import of_distillation
    from fgm.build import build_untrained

    config = weightless(config)
    return of_distillation(
        lambda: build_untrained(config, Console(quiet=True), 1)[0], config["trainer"]["precision"], copies
    )


def weightless(config: dict[str, Any]) -> dict[str, Any]:
    """The same shapes without a file of weights, images or prompts, and with an optimizer that is there."""
    from fgm.build import NOTHING, with_stand_ins

    config = with_stand_ins(stripped(config))
    teacher = config["teacher"]
    if "checkpoint" in teacher or "recipe" in teacher or "file" in teacher:
        network, guidance = config["network"], teacher.get("guidance", 1.0)
        teacher = {"_target_": "fgm.teacher.untrained", "network": network, "guidance": guidance}
    return config | {"teacher": teacher, "data": blank(config["data"]), "evaluation": NOTHING}


def blank(node: dict[str, Any]) -> dict[str, Any]:
    """Data of the same shapes."""
    from hydra.utils import instantiate

    from fgm.streams import stream

    data = instantiate(node)
    condition = data.conditions(1, stream("shapes", index=0))
    shape = None if condition is None else list(condition.shape[1:])
    target = "fgm.benchmarks.footprint.BlankData"
    return {"_target_": target, "shape": list(data.shape), "num_classes": data.num_classes, "condition": shape}


def stripped(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    node = {key: stripped(value) for key, value in node.items()}
    if str(node.get("_target_")).startswith("fgm.training.") and "data" in node:
        return node | {"data": None}  # real images, in the shape of the recipe's own
    if node.get("_target_") == "fgm.networks.sd3.pretrained":
        return node | {"random_init": True}
    if node.get("kernel") == "eight_bit":
        return node | {"_target_": "fgm.benchmarks.footprint.byte_moments"}
    return node


def tell(footprint: Any, config: dict[str, Any]) -> None:
    from fgm.benchmarks.footprint import GIB, GPUS

    batch, parts = config["training"]["batch_size"], config["training"]["micro_batches"]
    told = f"batch {batch} a device" + (f", in {parts} parts" if parts > 1 else "")
    checkpointing = config["network"].get("checkpointing")
    told += "" if checkpointing is None else f", {'with' if checkpointing else 'without'} gradient checkpointing"
    table = Table("part", "GiB", title=f"{config['recipe']}, {told}")
    for part in ("weights", "gradients", "optimizer", "activations", "total"):
        table.add_row(part, f"{getattr(footprint, part) / GIB:.3g}")
    console = Console(soft_wrap=True)
    console.print(table)
    gpus = [f"{gpu} ({GPUS[gpu]} GiB)" for gpu in footprint.fits()]
    console.print(f"fits on {', '.join(gpus)}" if gpus else "fits on no GPU that is known: make the batch smaller")


if __name__ == "__main__":
    entry(main, __doc__)
