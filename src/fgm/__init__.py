"""Flow Generator Matching (arXiv 2410.19310): distil a flow-matching model into a one-step generator.

    generator = fgm.load("outputs/digits_fgm")          a finished run, or the name of an experiment
    x_0 = generator(n=16, seed=0)

    generator = fgm.distill(teacher, shape=(2,), t_star=0.9, max_steps=2000)
    fgm.evaluate(generator, fgm.metrics.FrechetDistance(reference), n=1000)

Names are imported when they are first used. Read in this order: training/distillation, flow/losses, networks/generator.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgm.cli.api import Generator, distill, evaluate, load
    from fgm.evaluation import metrics
    from fgm.flow import losses, paths, times
    from fgm.flow.paths import ProbabilityPath
    from fgm.networks import VelocityModel

__version__ = "0.1.0"
__all__ = [
    "Generator", "ProbabilityPath", "VelocityModel", "distill", "evaluate", "load", "losses", "metrics", "paths", "times",
]  # fmt: skip
ATTRIBUTES = {
    "Generator": "fgm.cli.api", "distill": "fgm.cli.api", "evaluate": "fgm.cli.api", "load": "fgm.cli.api",
    "ProbabilityPath": "fgm.flow.paths", "VelocityModel": "fgm.networks",
}  # fmt: skip
MODULES = {
    "losses": "fgm.flow.losses", "paths": "fgm.flow.paths", "times": "fgm.flow.times", "metrics": "fgm.evaluation.metrics",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ATTRIBUTES:
        return getattr(import_module(ATTRIBUTES[name]), name)
    if name in MODULES:
        return import_module(MODULES[name])
    raise AttributeError(f"module 'fgm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
