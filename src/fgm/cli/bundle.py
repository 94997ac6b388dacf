"""python -m fgm.cli.bundle experiment=<experiment> [evaluator=<name>]: add a finished run's weights to the suite's own.

The weights are rounded to bfloat16 and then evaluated, by the experiment's evaluation or the given evaluator, so that a
distillation from them with the same evaluation need not evaluate them again. fgm.teachers.bundled lists the files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgm.cli.checks import check, make
from fgm.cli.command import Command
from fgm.cli.evaluate import make_evaluation
from fgm.cli.loading import sampler_source, weights_file
from fgm.cli.runs import BUNDLED_WEIGHTS, device_of_rank, finished
from fgm.teachers import bundled
from fgm.utils.errors import UserError
from fgm.utils.files import replacing, sha256_of
from fgm.utils.printing import plain_console
from fgm.utils.records import Measurement, write_json

LARGEST = 8_000_000  # bytes


@dataclass(frozen=True)
class Settings:
    evaluator: Any = None


def run(config: dict[str, Any], settings: Settings) -> None:
    config = finished(config)
    if BUNDLED_WEIGHTS in config:
        raise UserError(f"{config['run_dir']} holds no finished run: make train EXP={config['experiment']}")
    if settings.evaluator:
        check(settings.evaluator, "evaluator")
        config = config | {"evaluation": settings.evaluator}
    file = bundled.weights(config["experiment"])
    with replacing(file) as rounded:
        round_weights(weights_file(config), rounded)
        results = measured(config | {BUNDLED_WEIGHTS: str(rounded)})
    row = json.loads((Path(config["run_dir"]) / "results.json").read_text())
    content = {"sha256": sha256_of(file), "row": row | {"results": [m.row() for m in results]}, "config": config}
    write_json(file.with_suffix(".json"), content)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, measured; commit it with {file.stem}.json")


def round_weights(trained: Path, file: Path) -> None:
    """Write the weights in bfloat16.

    Raises:
        UserError: the file would be too large for a repository.
    """
    import torch
    from safetensors.torch import load_file, save

    state = load_file(trained)
    rounded = save({name: w.bfloat16() if w.dtype == torch.float32 else w for name, w in state.items()})
    if len(rounded) > LARGEST:
        raise UserError(f"{trained}: {len(rounded) / 1e6:.1f} MB in bfloat16, and at most 8 MB come with the suite")
    file.write_bytes(rounded)


def measured(config: dict[str, Any]) -> list[Measurement]:
    """Evaluate the rounded weights as make eval does."""
    evaluation, data = make_evaluation(config["evaluation"]), make(config["data"], "data")
    source = sampler_source(config, evaluation, data, evaluation.n, evaluation.seed, device_of_rank())
    return evaluation.measure(source, console=plain_console())


main = Command("bundle", run, Settings, groups={"evaluator": "evaluation"})

if __name__ == "__main__":
    main.main()
