"""Run a study's sweep: python -m fgm.cli.sweep sweep=t_star [experiment=digits_fgm] [key=value ...]

sweep=t_star                    configs/sweep/<name>.yaml: its axes, seeds, metrics, and what makes a point small
method.t_star=0.7,0.9 seed=0    a part of it, by its axes and seeds
training.max_steps=200             any other value, for all points
metrics=nll_gap:min,energy:min  what decides, and what stands beside it, for a recipe that measures something else
retry=true                      points that failed before are run again
format=wandb                    write the same sweep, retry= included, for W&B's agents, and run nothing; out=<file>
launcher=joblib                 hand the points to one of Hydra's launchers; hydra.<key>=<value> sets what is its own
sweeper=optuna                  or let one of Hydra's sweepers choose them

Every point is a process of its own, one at a time; its log and samples are in outputs/<study>/, its row in
experiments/<study>/runs.jsonl. The same command again goes on: points that have a row are not run again. A point that
fails is a row that says why, and the others go on.
"""

from fgm.cli.arguments import choice, parse_arguments, split, yes
from fgm.cli.studies.definition import read_sweep, restrict, with_metrics
from fgm.cli.studies.multirun import LAUNCHERS, SWEEPERS, multirun
from fgm.cli.studies.points import points
from fgm.cli.studies.running import require_one_process, run_all
from fgm.cli.studies.wandb_sweep import write_sweep
from fgm.utils.errors import UserError, entry
from fgm.utils.printing import plain_console

OWN = {"sweep": "", "metrics": "", "retry": "false", "format": "run", "out": "", "launcher": "", "sweeper": ""}


def main(arguments: list[str]) -> None:
    own, rest = split(arguments, OWN)
    require_one_process()
    hydra = [argument for argument in rest if argument.startswith("hydra.")]
    through_hydra, retry = asks_hydra(own, hydra), yes(own, "retry")
    whole = with_metrics(read_sweep(own["sweep"]), own["metrics"])
    sweep, rest = restrict(whole, [argument for argument in rest if argument not in hydra])
    recipe, overrides = parse_arguments(rest, sweep.experiment)
    console = plain_console()
    if own["format"] == "wandb":
        print(write_sweep(sweep, recipe, overrides, retry, own["out"]))
    elif through_hydra:
        multirun(sweep, recipe, overrides, own, hydra, console)
    else:
        run_all(points(sweep, recipe, overrides), retry, console)


def asks_hydra(own: dict[str, str], hydra: list[str]) -> bool:
    """Whether Hydra is to hand out the points.

    Raises:
        UserError: W&B's agents are to, or a setting has no such value.
    """
    wandb = choice(own, "format", ("run", "wandb")) == "wandb"
    asked = [choice(own, "launcher", ("", *LAUNCHERS)), choice(own, "sweeper", ("", *SWEEPERS)), *hydra]
    if wandb and any(asked):
        raise UserError(
            "format=wandb leaves the points to its agents: launcher=, sweeper= and hydra.<key>= have no place"
        )
    if own["out"] and not wandb:
        raise UserError(f"out={own['out']} is for format=wandb; a sweep's own place is outputs=<folder>")
    return any(asked)


if __name__ == "__main__":
    entry(main, __doc__)
