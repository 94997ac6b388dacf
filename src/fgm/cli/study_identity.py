"""How far FGM's gradient is from the one it stands for, by how well the online network is fitted:
python -m fgm.cli.study_identity [cases=gaussian,mixture] [key=value ...]

cases=gaussian,mixture,mixture_mlp,digits,shapes   see studies/identity/cases.py; all unless given
seeds=3                seeds 0, 1, 2
turns=1,10,100         turns of the online network after which it is measured; each case has its own
reference=3000         turns of the reference network, more than any of turns
draws=16384            of z, eps and t behind each gradient
outputs=outputs experiments=experiments network.width=64   any other value of the cases' recipes

A point is a case, a seed and a number of turns; it is a row of experiments/identity/runs.jsonl, and is not measured
again. The picture is experiments/identity/identity.png, made of all rows; make table writes the table.
"""

import time
from typing import Any

from rich.console import Console

from fgm.cli import teacher
from fgm.cli.arguments import split, whole
from fgm.cli.config import require_extras
from fgm.cli.recording import diary, provenance
from fgm.cli.studies.identity.cases import CASES, Case, chosen, require_recipeless
from fgm.cli.train import train_teacher
from fgm.utils.errors import entry, resumable
from fgm.utils.printing import plain_console
from fgm.utils.records import append_row, read_rows

OWN = {"cases": ",".join(CASES), "seeds": "3", "turns": "", "reference": "", "draws": ""}


def main(arguments: list[str]) -> None:
    resumable()
    own, overrides = split(arguments, OWN)
    console = plain_console()
    require_recipeless(overrides)
    cases, seeds = chosen(own), whole(own, "seeds", 1)
    asked = [(case, case.config(seed, overrides)) for seed in range(seeds) for case in cases]
    for _, config in asked[: len(cases)]:
        require_extras(config)
        teacher.require(config["teacher"])
    for case, config in asked:
        run(case, config, console)
    folder = diary(asked[0][1]).parent
    from fgm.cli.studies.identity.plot import write_picture

    picture = write_picture(read_rows(folder / "runs.jsonl"), folder / "identity.png")
    console.print(f"{picture}, rows beside it (make table)")


def run(case: Case, config: dict[str, Any], console: Console) -> None:
    """Measure what has no row yet: a case and seed is one training, whatever of it is missing."""
    path, part = diary(config), case.digest(config)
    known = {row["turns"] for row in read_rows(path) if (row["study_digest"], row["seed"]) == (part, config["seed"])}
    missing = [turns for turns in case.measured if turns not in known]
    console.print(f"{case.name}, seed {config['seed']}: {len(case.measured)} points, {len(known)} of them done")
    if not missing:
        return
    from fgm.cli.studies.identity.rows import measurements
    from fgm.cli.studies.identity.runs import results

    train_teacher(config["teacher"])
    began = time.perf_counter()
    found = {result.turns: result for result in results(config, case)}
    shared = provenance(config) | {"study_digest": part} | config["study"]
    shared |= {"images_seen": case.reference * config["training"]["batch_size"]}
    shared |= {"wall_s": round(time.perf_counter() - began, 1)}  # of all points of this case and seed
    for turns in missing:
        measured = measurements(found[turns], case)
        append_row(path, shared | {"turns": turns, "results": [m.row() for m in measured]})
    console.print(f"{case.name}, seed {config['seed']}: {shared['wall_s']:.0f} s")


if __name__ == "__main__":
    entry(main, __doc__)
