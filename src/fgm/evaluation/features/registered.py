"""Any extractor that is registered with torch-fidelity, by its name.

Those that torch-fidelity brings would fetch their weights, so that they need a path here. An extractor of your own:
`torch_fidelity.register_feature_extractor("mine", Mine)` before the suite is built.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgm.evaluation.features.extractor import NetworkExtractor, three_channels, weights_hash
from fgm.evaluation.features.states import harmless
from fgm.utils.errors import UserError, hint
from fgm.utils.pretrained import hash_of_checkpoint

READ_A_STATE_DICT = ("inception-v3-compat", "vgg16")  # the others fetch, or execute what they read


class OneLayer(NetworkExtractor):
    """Around a network of torch-fidelity's that gives one layer."""

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return self.net(three_channels(images))[0], None


class Registered(OneLayer):
    """Images -> one layer of a registered extractor.

    Args:
        name: as registered.
        layer: None for the one that the extractor names for FID.
        weights: path, for those that need one.
        device: auto, cpu or cuda.
    """

    def __init__(self, name: str, layer: str | None = None, weights: str | None = None, device: str = "auto") -> None:
        kind = registered_class(name)
        given = local_weights(name, kind, weights)
        layer = layer or kind.get_default_feature_layer_for_metric("fid")
        if layer not in kind.get_provided_features_list():
            raise UserError(f"{name} has no layer {layer!r}; it has {', '.join(kind.get_provided_features_list())}")
        net = kind(name, [layer], feature_extractor_weights_path=given).eval()
        digest = hash_of_checkpoint(Path(weights)) if weights else weights_hash(net)
        super().__init__(f"{name}-{layer}", digest, 0, net, device, "in the extractor")
        self.dim = self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]


def registered_class(name: str) -> Any:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # seconds to import

    if name not in FEATURE_EXTRACTORS_REGISTRY:
        raise UserError(
            f"torch-fidelity has no extractor {name!r} registered; {hint(name, FEATURE_EXTRACTORS_REGISTRY)}"
        )
    return FEATURE_EXTRACTORS_REGISTRY[name]


def local_weights(name: str, kind: Any, weights: str | None) -> Any:
    """What the constructor may read: the user's path, or for torch-fidelity's own a copy of its tensors alone."""
    if weights and not Path(weights).is_file():
        raise UserError(f"no weights of {name} at {weights}: put the file there; nothing is downloaded")
    if not kind.__module__.startswith("torch_fidelity."):
        return weights
    if name not in READ_A_STATE_DICT:
        raise UserError(
            f"{name} of torch-fidelity reads no plain state dict: take Dinov2 or Clip from a local directory"
        )
    if weights is None:
        raise UserError(f"{name} would be downloaded: give evaluation.suite.extractor.weights=<path> of its state dict")
    return harmless(Path(weights))
