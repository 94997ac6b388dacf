"""The weights of the best measurement in training, kept beside the checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fgm.evaluation.evaluator import Mode
from fgm.training.checkpointing import exported_state
from fgm.training.distributed import training_ranks
from fgm.training.module import TrainingModule
from fgm.utils.distributed import on_rank_zero
from fgm.utils.errors import UserError
from fgm.utils.files import replacing
from fgm.utils.records import Measurement, write_json

BEST = Path("checkpoints") / "best.safetensors"


class SaveBest:
    """Keeps the averaged weights of the best measurement in training, in run_dir/checkpoints:

        best.safetensors    as the run exports them at its end
        best.json           metric, value, n and protocol of that measurement, its cycle, and the mode

    A resumed run goes on from best.json, unless that speaks of another metric, mode or protocol. Choosing the best of
    many measurements flatters it: measure the chosen weights again, with another seed, before telling its value.

    Args:
        metric: of the suite, measured on the module's first source.
        mode: whether less or more is better.
        run_dir: of the run.
    """

    def __init__(self, metric: str, mode: Mode, run_dir: Path) -> None:
        self.metric, self.mode, self.path = metric, mode, run_dir / BEST

    def __call__(self, module: TrainingModule, cycle: int, measured: list[Measurement]) -> None:
        """
        Raises:
            UserError: the suite does not measure the metric.
        """
        found = {m.metric: m for m in reversed(measured)}
        if self.metric not in found:
            raise UserError(f"evaluation.monitor = {self.metric} is not measured here; there are {', '.join(found)}")
        best = found[self.metric]
        row = {"cycle": cycle, "metric": best.metric, "value": best.value, "n": best.n, "protocol": best.protocol}
        row |= {"mode": self.mode}
        if math.isfinite(best.value) and on_rank_zero(training_ranks(), lambda: self.improves(row)):
            self.save(module, row)

    def improves(self, row: dict[str, Any]) -> bool:
        record = self.path.with_suffix(".json")
        kept = json.loads(record.read_text()) if record.exists() and self.path.exists() else {}
        if any(kept.get(key) != row[key] for key in ("metric", "mode", "n", "protocol")):
            return True
        return row["value"] < kept["value"] if self.mode == "min" else row["value"] > kept["value"]

    def save(self, module: TrainingModule, row: dict[str, Any]) -> None:
        """The weights first: a record never speaks of weights that are not there."""
        state = exported_state(module)
        if module.global_rank:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            save_file(state, temporary)
        write_json(self.path.with_suffix(".json"), row)
