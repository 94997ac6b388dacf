"""Time this tree's training cycle against another commit's, for example before and after a change:
python -m benchmarks.against commit=HEAD~1 [experiment=digits_fgm] [key=value ...]

Each version trains in a process of its own, on one thread, with untrained networks. Blocks of cycles alternate between
the two (a b, b a, ...), so that a busy machine slows both alike. Seconds are those of the process's CPU time.

cycles=5         of a block            pairs=6    of blocks, after one that is not timed

Printed: images a second in the fastest and the median block of each, and the median ratio of the pairs.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.timing import interleaved, read_arguments
from fgm.utils.errors import UserError, entry

ROOT = Path(__file__).parents[1]
SETTINGS = {"commit": "HEAD", "cycles": 5, "pairs": 6}


def main(arguments: list[str]) -> None:
    own, config = read_arguments(arguments, SETTINGS)
    passed = [argument for argument in arguments if argument.partition("=")[0] not in SETTINGS]
    archive = subprocess.run(["git", "archive", own["commit"]], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise UserError(f"commit = {own['commit']}: {archive.stderr.decode().strip()}")
    with TemporaryDirectory() as other:
        subprocess.run(["tar", "-x", "-C", other], input=archive.stdout, check=True)
        workers = {name: start(Path(tree), passed) for name, tree in (("before", other), ("after", ROOT))}
        blocks = {name: lambda w=worker: block(w, own["cycles"]) for name, worker in workers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        interleaved({name: lambda n=name: seconds[n].append(blocks[n]()) for name in workers}, own["pairs"])
        for worker in workers.values():
            worker.communicate()
    images = own["cycles"] * config["training"]["batch_size"]
    timed = {name: each[1:] for name, each in seconds.items()}
    for name, each in timed.items():
        print(f"{name}: {images / min(each):.1f} images/s fastest, {images / median(each):.1f} median")
    ratios = [before / after for before, after in zip(timed["before"], timed["after"], strict=True)]
    print(f"after over before: {median(ratios):.2f} median, {min(ratios):.2f} to {max(ratios):.2f}")


def start(tree: Path, arguments: list[str]) -> "subprocess.Popen[str]":
    paths = os.pathsep.join([str(tree / "src"), str(tree)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-W", "ignore", __file__, *arguments]
    return subprocess.Popen(
        program, cwd=tree, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def block(worker: Any, cycles: int) -> float:
    """Return the seconds that a version takes for so many cycles."""
    worker.stdin.write(f"{cycles}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


class Blocks:
    """In place of a data loader: train as many cycles as each line of the standard input says, and print the seconds."""

    def __len__(self) -> int:
        return sys.maxsize

    def __iter__(self) -> Iterator[int]:
        for line in sys.stdin:
            began = time.process_time()
            yield from range(int(line))
            print(time.process_time() - began, flush=True)


def work(arguments: list[str]) -> None:
    """Train in the version whose package is on the path."""
    from benchmarks.cycle import Console, build_module, build_run, train, untrained

    _, config = read_arguments(arguments, {})
    with TemporaryDirectory() as directory:
        made = untrained(config | {"run_dir": directory, "logger": {}})
        train(build_module(made), build_run(made, Console(quiet=True)), Blocks(), [])


if __name__ == "__main__":
    entry(main, __doc__) if __package__ else work(sys.argv[1:])
