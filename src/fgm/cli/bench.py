"""Time the suite against plain code that does the same: python -m fgm.cli.bench [subject=cycle] [key=value ...]

experiment=digits_fgm [overrides]   whose training, or whose generator, is timed
subject=cycle                       a training cycle with untrained networks, or evaluation, of the finished run's
repetitions=5                       of every arm, in turn; the medians count

Of a cycle:
cycles=50                           of a block, between which the arms change
arms=all                            or ours, without the plain loops, whose memory a device may lack
clock=wall                          or cpu: seconds of this process alone, for one thread on a busy machine

Of an evaluation:
n=2000                              samples
extractor=small                     small (digits), convolutions or inception (untrained, any pictures)
metrics=all                         fd and kid of 100 subsets, or fd or kid alone

The ratios and their spread are printed and appended to experiments/bench/runs.jsonl (experiments=<folder> for another).
"""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from fgm.analysis.summary import summary
from fgm.cli.arguments import choice, split, whole
from fgm.cli.config import digest, parse_arguments, read_recipe, require_extras
from fgm.cli.evaluators import device_of_rank, make, require_device
from fgm.cli.finished import load_source
from fgm.cli.recording import provenance
from fgm.cli.run_config import read_config
from fgm.utils.errors import UserError, entry
from fgm.utils.printing import plain_console
from fgm.utils.records import append_row

OWN = {
    "subject": "cycle", "repetitions": "5", "cycles": "50", "arms": "all", "clock": "wall",
    "n": "2000", "extractor": "small", "metrics": "all",
}  # fmt: skip
SUBJECTS, EXTRACTORS = ("cycle", "evaluation"), ("small", "convolutions", "inception")
METRICS = {"all": ("fd", "kid"), "fd": ("fd",), "kid": ("kid",)}
SEED = 1234


def main(arguments: list[str]) -> None:
    own, rest = split(arguments, OWN)
    choice(own, "subject", SUBJECTS)
    choice(own, "extractor", EXTRACTORS)
    whole(own, "n", 2)
    choice(own, "metrics", tuple(METRICS))
    choice(own, "arms", ("all", "ours"))
    choice(own, "clock", ("wall", "cpu"))
    whole(own, "repetitions", 1)
    whole(own, "cycles", 1)
    config = read_recipe(*parse_arguments(rest))
    (bench_cycle if own["subject"] == "cycle" else bench_evaluation)(config, own)


def require_plain(config: dict[str, Any], arms: str) -> None:
    """
    Raises:
        UserError: the recipe is no plain distillation in one step, which the plain loops are.
    """
    method = config["method"]
    found = [] if "t_star" in method else [method["_target_"]]
    found += [key for key in ("adversary", "real_data") if method.get(key)]
    found += [f"method.steps = {method['steps']}"] if not found and method["steps"] > 1 else []
    if found:
        raise UserError(f"subject = cycle times a plain distillation in one step: {config['recipe']} has {found[0]}")
    if config["training"]["micro_batches"] > 1 and arms == "all":
        raise UserError("training.micro_batches > 1: the plain loops take a batch at once; give arms=ours")


def bench_cycle(config: dict[str, Any], own: dict[str, str]) -> None:
    cycles, repetitions = int(own["cycles"]), int(own["repetitions"])
    require_plain(config, own["arms"])
    require_extras(config)
    require_device(config["trainer"])
    from fgm.cli.benchmarks.cycle import CycleBench
    from fgm.cli.build import build_module, build_run
    from fgm.cli.stand_ins import untrained

    began = time.perf_counter()
    with TemporaryDirectory() as directory, Path(os.devnull).open("w") as nowhere:
        log_every = min(cycles, config["training"]["log_every"])  # once a block at least
        own_run = {"run_dir": directory, "logger": "csv", "training": config["training"] | {"log_every": log_every}}
        asked = untrained(config | own_run)
        module: Any = build_module(asked)
        run = build_run(asked, Console(file=nowhere))
        bench = CycleBench(module, run, cycles, repetitions, own["arms"] == "ours", own["clock"])
        results = bench.measure("untrained networks")
    cost = {"images_seen": module.images_seen, "wall_s": round(time.perf_counter() - began, 1)}
    tell(config, own, results, bench.times, cost)


def bench_evaluation(config: dict[str, Any], own: dict[str, str]) -> None:
    batch, n, repetitions = config["evaluation"]["batch"], int(own["n"]), int(own["repetitions"])
    data = make(config["data"], "data")
    if len(data.shape) != 3:
        raise UserError(f"subject = evaluation measures pictures, and {config['recipe']} draws points")
    from fgm.cli.benchmarks.evaluation import Bench
    from fgm.cli.benchmarks.extractors import extractor_of
    from fgm.cli.benchmarks.timing import interleaved
    from fgm.evaluation.conditioning import conditioning
    from fgm.evaluation.sources.sampler import SamplerSource

    began, (generator, told) = time.perf_counter(), generator_of(config)
    device = device_of_rank(config["trainer"]["accelerator"])
    generator.sampler.to(device)
    source = SamplerSource(generator, SEED, n, data.shape, conditioning(data, None, SEED), device, batch)
    with TemporaryDirectory() as directory:
        bench = Bench(source, data, extractor_of(own["extractor"]), METRICS[own["metrics"]], Path(directory))
        times = interleaved(bench.arms(), repetitions)
    images_seen, wall_s = n * len(times) * (repetitions + 1), time.perf_counter() - began
    tell(config, own, bench.measurements(times, told), times, {"images_seen": images_seen, "wall_s": round(wall_s, 1)})


def generator_of(config: dict[str, Any]) -> tuple[Any, str]:
    """A finished run's generator, or an untrained one of its recipe, and which of the two it is."""
    run_dir = Path(config["run_dir"])
    if (run_dir / "results.json").exists():
        return load_source(read_config(run_dir / "config.yaml", config) | {"run_dir": str(run_dir)}), "finished run"
    from fgm.evaluation.sampling import Sampler
    from fgm.networks.generator import FewStepGenerator

    node, path = config["method"], make(config["path"], "path")
    t_star, c_in = node.get("t_star", 1.0), node.get("c_in", "one")
    net = make(config["network"], "network")
    generator = FewStepGenerator(net, path, t_star, c_in, make(config["data"], "data").std).eval()
    return Sampler("one step, untrained", generator, 1, "raw"), "untrained network"


def tell(
    config: dict[str, Any], own: dict[str, str], results: list[Any], times: dict[str, Any], cost: dict[str, Any]
) -> None:
    """The table for people, and one row; study_digest is of all but seed and repetitions."""
    console, path = plain_console(), Path(config["experiments"]) / "bench" / "runs.jsonl"
    study = {"config": config | {"seed": None}, "bench": own | {"repetitions": ""}}
    row = provenance(config) | {"study_digest": digest(study), "subject": own["subject"]}
    row |= {"extractor": own["extractor"]} if own["subject"] == "evaluation" else {}
    seconds = {arm: [round(s, 4) for s in each] for arm, each in times.items()}
    append_row(path, row | cost | {"seconds": seconds, "results": [m.row() for m in results]})
    console.print(summary(results, f"{own['subject']} of {config['recipe']}, {row['device']}"))
    console.print(f"row in {path} (make table)")


if __name__ == "__main__":
    entry(main, __doc__)
