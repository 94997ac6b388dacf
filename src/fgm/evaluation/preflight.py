"""Files that an evaluation will ask for, looked for before anything is imported or trained."""

from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError
from fgm.utils.pretrained import CLIP, MASK2FORMER, inception_weights

DIRECTORIES = {"Mask2FormerDetector": ("detector", MASK2FORMER), "CLIPColors": ("colors", CLIP)}


def require_files(node: Any) -> None:
    """Of every suite and extractor in a config.

    Raises:
        UserError: a file of weights or a reference is not there.
    """
    if not isinstance(node, dict):
        return
    name, reference = str(node.get("_target_", "")).rpartition(".")[2], node.get("reference")
    if name == "Inception":
        inception_weights(node.get("weights"))
    if name in DIRECTORIES:
        require_folder(*DIRECTORIES[name], node["directory"])
    if name == "GenEvalSuite":
        require_metadata(node["metadata"])
    if name == "FeatureMetrics" and reference and not Path(reference).is_file():
        raise UserError(f"there is no file {reference}: give evaluation.suite.reference=<npz in EDM's layout>, or null")
    for value in node.values():
        require_files(value)


def require_folder(key: str, published_as: str, directory: str | None) -> None:
    if not directory or not Path(directory).is_dir():
        raise UserError(
            f"evaluation.suite.{key}.directory = {directory}: put {published_as} into a folder and name it there; "
            "nothing is downloaded"
        )


def require_metadata(path: str | None) -> None:
    if not path or not Path(path).is_file():
        raise UserError(
            f"evaluation.suite.metadata = {path}: give prompts/evaluation_metadata.jsonl of a checkout of "
            "github.com/djghosh13/geneval"
        )
