"""fgm <command> [key=value ...]: distil a flow-matching model into a generator that needs one network call.

    train           train a teacher or a one-step generator; the same command again resumes, or says that it is done
    eval            measure a finished run, or a folder of PNGs
    sample          draw from a finished run
    export          samples of a finished run as PNGs, or the generator as a diffusers pipeline
    record          add a finished run to experiments/<name>/runs.jsonl
    memory          what a distillation needs, and which GPUs hold it
    cache-prompts   encode the prompts of a text-to-image experiment
    reference       mu and sigma of real images' features
    score           GenEval's score of a folder of images
    table           write the tables of the documents and the plots of the studies
    sweep           print a study as W&B's sweep file; train -m +sweep=<name> runs it

fgm train experiment=digits_fgm method.t_star=0.9      an experiment of configs/experiment with other values
fgm train -m method.t_star=0.7,0.9 seed=0,1            a grid of runs
fgm <command> --help                                   its settings and all experiments; fgm --version
"""

import os
import runpy
import sys
from importlib import import_module
from importlib.metadata import version

from fgm.utils.errors import UserError, entry, hint

MODULES = {  # of fgm.cli, with the name of a command that is not the module's main one
    "train": "train", "eval": "evaluate", "evaluate": "evaluate", "sample": "sample", "export": "export",
    "record": "train:record", "memory": "memory", "cache-prompts": "cache_prompts", "reference": "evaluate:reference",
    "score": "score", "table": "table", "sweep": "sweep", "config": "config", "bundle": "export:bundle",
}  # fmt: skip
COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    """Run a command on the other arguments, in this process."""
    entry(dispatch, None)


def dispatch(arguments: list[str]) -> None:
    """
    Raises:
        UserError: there is no such command.
    """
    if arguments[:1] and arguments[0] in COMPLETION:
        arguments = [completed_command(), *arguments]
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
    elif name == "--version":
        print(f"fgm {version('fgm')}")
    elif name not in MODULES:
        raise UserError(f"there is no command {name!r}; {hint(name, MODULES)}")
    else:
        sys.path.insert(0, os.getcwd())  # as python -m does: a _target_ may be in a file of this folder
        module, _, command = MODULES[name].partition(":")
        if command:
            getattr(import_module(f"fgm.cli.{module}"), command)(rest)
            return
        sys.argv[1:] = rest
        runpy.run_module(f"fgm.cli.{module}", run_name="__main__", alter_sys=True)  # Lightning starts it again per rank


def completed_command() -> str:
    """Return the command that a shell completes, `fgm train ...`, and take it out of the line that Hydra reads."""
    line = os.environ.get("COMP_LINE", "fgm train ")
    words = line.split()
    name = words[1] if len(words) > 1 and words[1] in MODULES else "train"
    if name in words:
        os.environ["COMP_LINE"] = line.replace(f" {name}", "", 1)
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return name


if __name__ == "__main__":
    main()
