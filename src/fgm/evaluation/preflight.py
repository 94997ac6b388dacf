"""Files that an evaluation will ask for, looked for before anything is imported or trained."""

from pathlib import Path
from typing import Any

from fgm.errors import Refusal
from fgm.evaluation.features.weights import inception_weights


def require_files(node: Any) -> None:
    """Of every panel and extractor in a config.

    Raises:
        Refusal: a file of weights or a reference is not there.
    """
    if not isinstance(node, dict):
        return
    target = str(node.get("_target_", ""))
    if target.endswith(".Inception"):
        inception_weights(node.get("weights"))
    reference = node.get("reference")
    if target.endswith(".FeaturePanel") and reference and not Path(reference).is_file():
        raise Refusal(f"there is no file {reference}: give evaluation.panel.reference=<npz in EDM's layout>, or null")
    for value in node.values():
        require_files(value)
