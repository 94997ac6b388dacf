"""Files that an evaluation will ask for, looked for before anything is imported or trained."""

from pathlib import Path
from typing import Any

from fgm.errors import Refusal
from fgm.evaluation.features.weights import inception_weights
from fgm.evaluation.geneval.vocabulary import GRAMMAR
from fgm.evaluation.geneval.weights import CLIP, MASK2FORMER

PUBLISHED = {"Mask2FormerDetector": MASK2FORMER, "ClipColours": CLIP}


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
    if target.endswith((".Mask2FormerDetector", ".ClipColours")):
        require_directory(target.rpartition(".")[2], node["directory"])
    if target.endswith(".GenEvalPanel") and node["metadata"] != GRAMMAR:
        require_metadata(node["metadata"])
    reference = node.get("reference")
    if target.endswith(".FeaturePanel") and reference and not Path(reference).is_file():
        raise Refusal(f"there is no file {reference}: give evaluation.panel.reference=<npz in EDM's layout>, or null")
    for value in node.values():
        require_files(value)


def require_directory(name: str, directory: str | None) -> None:
    if not directory or not Path(directory).is_dir():
        node = {"Mask2FormerDetector": "detector", "ClipColours": "colours"}[name]
        raise Refusal(
            f"evaluation.panel.{node}.directory = {directory}: put {PUBLISHED[name]} into a folder and name it there; "
            "nothing is downloaded"
        )


def require_metadata(path: str | None) -> None:
    if not path or not Path(path).is_file():
        raise Refusal(
            f"evaluation.panel.metadata = {path}: give prompts/evaluation_metadata.jsonl of a checkout of "
            "github.com/djghosh13/geneval, or grammar for 553 prompts of our own, which are no published benchmark"
        )
