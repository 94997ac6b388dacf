"""What memory a distillation takes, and which cards hold it: python -m fgm.memory experiment=sd3_fgm [key=value ...]

Nothing is loaded: networks are built on the meta device, and Stable Diffusion 3's shape is known. See
benchmarks/footprint.py for what is counted and what is not.
"""

from typing import Any

from rich.console import Console
from rich.table import Table

from fgm.config import parse_arguments, read_recipe
from fgm.errors import Refusal, entry
from fgm.pretrained import BILLIONS

GB = 1e9


def main(arguments: list[str]) -> None:
    config = read_recipe(*parse_arguments(arguments))
    method = config["method"]
    if "t_star" not in method or method.get("adapters") or method.get("adversary"):
        raise Refusal(f"{config['recipe']}: the memory of whole-network distillations alone is counted")
    from fgm.benchmarks.footprint import of_distillation

    net = network_of(config)
    footprint = of_distillation(
        net, config["training"]["batch_size"],
        guided=(config["teacher"].get("scale", 1) != 1 or config["teacher"].get("guidance", 1) != 1)
        and method["guidance"] != "none",
        online_guided=method["guidance"] == "long_and_short", two_stage=method["two_stage"],
        half=config["trainer"]["precision"] == "bf16-mixed",
        half_teacher=bool(method.get("half_teacher")),
        copies=config["strategy"]["_target_"].endswith("DistributedCopies"),
    )  # fmt: skip
    tell(footprint, config)


def network_of(config: dict[str, Any]) -> Any:
    """On the meta device."""
    from hydra.utils import instantiate

    from fgm.benchmarks.footprint import sd3_on_meta
    from fgm.build import untrained_network

    node, teacher = config["network"], config["teacher"]
    if node["_target_"] == "fgm.networks.sd3.pretrained":
        if node["model"] not in BILLIONS or BILLIONS[node["model"]] > 3:
            raise Refusal(f"network.model = {node['model']}: the memory of SD3 medium and SD3.5 medium alone is known")
        return sd3_on_meta(node["size"], node["checkpointing"], "3.5" in node["model"])
    found = untrained_network(teacher, node) if teacher and config["method"]["generator_start"] == "teacher" else None
    return instantiate(found["network"] if found else node).to("meta")


def tell(footprint: Any, config: dict[str, Any]) -> None:
    table = Table("part", "GB", title=f"{config['recipe']}, batch {config['training']['batch_size']} a device")
    for part in ("weights", "gradients", "optimizer", "activations", "total"):
        table.add_row(part, f"{getattr(footprint, part) / GB:.3g}")
    console = Console(soft_wrap=True)
    console.print(table)
    cards = footprint.fits()
    console.print(f"fits on {', '.join(cards)}" if cards else "fits on no card that is known: make the batch smaller")


if __name__ == "__main__":
    entry(main, __doc__)
