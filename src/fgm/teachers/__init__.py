"""Published flow and diffusion models as velocities on our paths, and the weights that come with the suite."""

from typing import Any

from fgm.teachers.diffusers.adapter import geometry
from fgm.teachers.diffusers_unet import unet_directory
from fgm.utils.errors import UserError
from fgm.utils.pipelines import require_parts, require_size


def require_models(node: Any) -> None:
    """Check the files of every published diffusers network in a config, without loading them.

    Raises:
        UserError: weights are missing or random, of an unknown family, or the size does not fit.
    """
    if not isinstance(node, dict):
        return
    target = str(node.get("_target_"))
    if target in ("fgm.networks.sd3.pretrained", "fgm.teachers.diffusers.adapter.pretrained") and node.get(
        "random_init"
    ):
        raise UserError("network.random_init = true: random weights are for benchmarks and make memory only")
    if target == "fgm.networks.sd3.pretrained":
        require_size(node["size"])
        require_parts(node["model"], ("transformer", "vae"))
    if target == "fgm.teachers.diffusers.adapter.pretrained":
        geometry(node["model"], node["height"], node["width"], node["frames"])
    if target.startswith("fgm.teachers.diffusers_unet."):
        unet_directory(node["directory"])
    for value in node.values():
        require_models(value)
