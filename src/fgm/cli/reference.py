"""python -m fgm.cli.reference data=<name> out=<file>.npz [split=train] [n=]: the moments of an evaluator's features.

The file has EDM's keys, mu (d,) and sigma (d, d), float64, and n, the number of images behind them. Images come from a
data set of configs/data, or with samples_dir= from a folder of PNGs (recursive=true for its subfolders); features are
those of evaluator=digits or another one of configs/evaluation (evaluator.<key>= sets its values). n= limits the images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from pydantic import PositiveInt

from fgm.cli.checks import check, make
from fgm.cli.command import Command
from fgm.cli.evaluate import make_evaluation
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.frechet import Moments
from fgm.evaluation.sources import DatasetSource, FolderSource, batches
from fgm.utils.errors import UserError
from fgm.utils.files import replacing

STEP = 1000


@dataclass(frozen=True)
class Settings:
    samples_dir: str | None = None
    split: str = "train"
    n: PositiveInt | None = None
    recursive: bool = False
    out: str | None = None
    evaluator: Any = None


def run(config: dict[str, Any], settings: Settings) -> None:
    choices, node = HydraConfig.get().runtime.choices, settings.evaluator or config["evaluation"]
    check(node, "evaluator")
    if settings.out is None:
        raise UserError("out= is missing: give out=<file>.npz")
    out, name = Path(settings.out), choices.get("evaluation@evaluator") or choices["evaluation"]
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise UserError(f"out = {out} must end with .npz, in a folder that exists")
    chosen = any(override.startswith("data=") for override in HydraConfig.get().overrides.task)
    if chosen == bool(settings.samples_dir):
        raise UserError("give data=<name> or samples_dir=<folder>, one of the two")
    source: Any
    if settings.samples_dir:
        source = FolderSource(settings.samples_dir, settings.n, settings.recursive)
    else:
        source = DatasetSource.of_data(make(config["data"], "data"), choices["data"], settings.split, settings.n)
    suite = make_evaluation(node).suite
    if not isinstance(suite, FeatureMetrics):
        raise UserError(f"evaluator = {name} has no features; choose one that has, such as digits")
    features = (suite.features(samples.x, None)["features"] for _, samples in batches(source, STEP))
    moments = Moments.of_batches(features)
    with replacing(out) as temporary:
        moments.save(temporary)
    print(f"{out}: mu and sigma of {moments.n} images, {len(moments.mean)} features of {name}")


main = Command("reference", run, Settings, groups={"evaluator": "evaluation"})

if __name__ == "__main__":
    main.main()
