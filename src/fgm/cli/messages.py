"""What Hydra and OmegaConf complain about, as one line that names the key, the value and the nearest right one."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fgm.utils.errors import UserError, first_line, hint

PACKAGED = Path(__file__).parents[1] / "configs"  # in a wheel
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "configs"
RENAMED = {  # old keys -> new ones
    "evaluation.panel": "evaluation.suite", "teacher.recipe": "teacher.experiment",
    "training.cycles": "training.max_steps", "training.warmup": "training.warmup_steps",
    "training.decay": "training.lr_decay_fraction", "training.clip": "training.gradient_clip_val",
    "training.log_every": "training.log_every_n_steps", "training.save_every": "training.save_every_n_steps",
    "training.ema_decay": "training.ema_half_life, a share of the images seen, log(2)/((1 - ema_decay) max_steps),",
    "training.save_minutes": "training.save_every_minutes", "training.keep_every": "training.keep_every_n_steps",
    "method.online_turns": "method.online_steps", "method.generator_start": "method.generator_init",
    "method.online_start": "method.online_init", "method.online_time": "method.online_times",
    "method.normaliser": "method.normalizer", "method.two_stage": "method.low_memory",
    "method.adversary": "method.discriminator", "method.real_data": "method.real_uid",
    "method.half_teacher": "method.teacher_dtype", "method.null_share": "method.label_dropout",
    "world_change": "allow_world_size_change",
}  # fmt: skip
PLUGINS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "optuna": "optuna"}  # of Hydra


@contextmanager
def one_line_errors(known: Callable[[], list[str]]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into a UserError of one line.

    Args:
        known: lists the dotted keys of the config; called only if a key is unknown.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error, known)) from error


def one_line(error: Exception, known: Callable[[], list[str]]) -> str:
    """Say in one line what is wrong; for an unknown key or file, with the nearest one."""
    message, where = f"{error}\n{error.__cause__ or ''}", getattr(error, "full_key", None)
    if isinstance(error, MissingMandatoryValue):
        return f"{where} has no value: give {where}=..."
    if isinstance(error, OverrideParseException):
        if "=" not in error.override and not error.override.startswith("~"):
            return f"{error.override!r} is not of the form key=value"
        return f"{error.override}: cannot be read; a value that holds =, a comma or a bracket needs quotes of its own"
    missing = re.search(r"Interpolation key '([^']+)' not found", message)
    if missing:
        return f"{where} takes {missing[1]}, which this config has not: choose another {missing[1].partition('.')[0]}="
    several = re.search(r"Ambiguous value for argument '([^']+)'", message)
    if several:
        return f"{several[1]}: a run has one value; give -m to run one after the other, and write a list as [a,b]"
    absent = re.search(r"Could not find '([^']+)/([^/']+)'", message)
    if absent:
        group, name = absent.groups()
        if name in PLUGINS:
            return f'{group}={name} is not installed: pip install "fgm[{PLUGINS[name]}]"'
        options = re.findall(r"^\t(\S+)$", message, re.M) or [path.stem for path in (CONFIGS / group).glob("*.yaml")]
        return f"there is no {group}={name}; {hint(name, sorted(options))}"
    group = re.search(r"Could not override '([^']+)'\.\s+No match in the defaults list", message)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", message)
    if group is None and unknown is None:
        return first_line(error)
    key = str(getattr(error, "full_key", None) or (unknown and (unknown[1] or unknown[2])))
    key = unknown[1] if unknown and unknown[1] else key
    return f"there is no setting {key}; {remedy(key, known)}"


def remedy(key: str, known: Callable[[], list[str]]) -> str:
    """Name what a key is called today, or the nearest known one."""
    for old, new in RENAMED.items():
        if f"{key}.".startswith(f"{old}."):
            return f"it is called {new}{key.removeprefix(old)} now"
    keys = known()
    if key in keys:  # of the default experiment, not of this one
        return f"this experiment does not set it: +{key}=... adds it"
    return hint(key, keys, f"at the root there are {', '.join(k for k in keys if '.' not in k)}")
