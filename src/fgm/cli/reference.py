"""python -m fgm.cli.reference data=<name> out=<file>.npz [split=train] [n=]: the moments of an evaluator's features.

The file has EDM's keys, mu (d,) and sigma (d, d), float64, and n, the number of images behind them. Images come from a
data set of configs/data, or with samples_dir= from a folder of PNGs (recursive=true for its subfolders); features are
those of evaluator=digits or another one of configs/evaluation (evaluator.<key>= sets its values). n= is how many, all
unless given.
"""

from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from fgm.cli.arguments import read_settings, required, whole_or, yes
from fgm.cli.evaluators import RECIPE, evaluator_settings, make, make_evaluation, read_data, read_evaluator
from fgm.utils.errors import UserError, entry
from fgm.utils.files import replacing

OWN = {
    "data": "", "samples_dir": "", "evaluator": "digits", "split": "train", "n": "", "recursive": "false", "out": "",
}  # fmt: skip
STEP = 1000


def main(arguments: list[str]) -> None:
    settings, rest = evaluator_settings(arguments)
    own = read_settings(rest, OWN)
    required(own, "out")
    n, recursive, out = whole_or(own, "n", None, 1), yes(own, "recursive"), Path(own["out"])
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise UserError(f"out = {out} must end with .npz, in a folder that exists")
    if bool(own["data"]) == bool(own["samples_dir"]):
        raise UserError("give data=<name> or samples_dir=<folder>, one of the two")
    data = read_data(own["data"]) if own["data"] else None
    node = read_evaluator(own["evaluator"], settings, RECIPE, [])
    source = folder(own["samples_dir"], n, recursive) if data is None else dataset(data, own, n)
    statistics = moments(source, feature_suite(node, own["evaluator"]))
    save(out, statistics)
    print(f"{out}: mu and sigma of {statistics.n} images, {len(statistics.mean)} features of {own['evaluator']}")


def folder(directory: str, n: int | None, recursive: bool) -> Any:
    from fgm.evaluation.sources.folder import FolderSource

    return FolderSource(directory, n, recursive)


def dataset(node: dict[str, Any], own: dict[str, str], n: int | None) -> Any:
    from fgm.evaluation.sources.dataset import dataset_source

    return dataset_source(make(node, "data"), own["data"], own["split"], n)


def feature_suite(node: dict[str, Any], name: str) -> Any:
    """
    Raises:
        UserError: the evaluator of that name compares no features.
    """
    from fgm.evaluation.feature_metrics import FeatureMetrics

    suite = make_evaluation(node).suite
    if not isinstance(suite, FeatureMetrics):
        raise UserError(f"evaluator = {name} has no features; choose one that has, such as digits")
    return suite


def moments(source: Any, suite: Any) -> Any:
    """FeatureStatistics of all images of a source, step by step."""
    from fgm.evaluation.frechet import FeatureStatistics
    from fgm.evaluation.sources import in_steps

    parts = (FeatureStatistics.of(suite.features(samples.x, None)["features"]) for _, samples in in_steps(source, STEP))
    return reduce(add, parts)


def save(path: Path, statistics: Any) -> None:
    """Atomically."""
    from fgm.evaluation.moments import save_moments

    with replacing(path) as temporary:
        save_moments(statistics, temporary)


if __name__ == "__main__":
    entry(main, __doc__)
