"""Files that a config's evaluation names, checked at once, before anything is loaded or trained."""

from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError
from fgm.utils.pretrained import CLIP, MASK2FORMER, inception_weights

DIRECTORIES = {"Mask2FormerDetector": ("detector", MASK2FORMER), "CLIPColors": ("colors", CLIP)}


def require_files(node: Any) -> None:
    """Check every suite and extractor in a config.

    Raises:
        UserError: a file of weights, prompts or moments is missing.
    """
    if not isinstance(node, dict):
        return
    name, where = str(node.get("_target_", "")).rpartition(".")[2], "evaluation.suite"
    if name == "Inception":
        inception_weights(node.get("weights"))
    if name in DIRECTORIES:
        key, published_as = DIRECTORIES[name]
        if not node["directory"] or not Path(node["directory"]).is_dir():
            raise UserError(
                f"{where}.{key}.directory = {node['directory']}: put {published_as} into a folder and name it there; "
                "nothing is downloaded"
            )
    if name == "GenEvalSuite" and not (node["metadata"] and Path(node["metadata"]).is_file()):
        raise UserError(
            f"{where}.metadata = {node['metadata']}: give prompts/evaluation_metadata.jsonl of a checkout of "
            "github.com/djghosh13/geneval"
        )
    reference = node.get("reference")
    if name == "FeatureMetrics" and reference and not Path(reference).is_file():
        raise UserError(f"there is no file {reference}: give {where}.reference=<npz in EDM's layout>, or null")
    for value in node.values():
        require_files(value)
