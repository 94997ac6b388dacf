"""A command of the suite as a Hydra application, with settings of its own beside an experiment's config.

Hydra reads the arguments: --help, --cfg job, --info, -m, --config-dir, hydra/launcher=, hydra/sweeper=, +key, ~key and
shell completion are its own. A mistake is one line on stderr and exit code 2.
"""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any, Generic, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fgm.cli.checks import check_arguments
from fgm.cli.config import CONFIGS, DEFAULT, experiment_names, keys_of, one_line_errors, resolved
from fgm.utils.errors import UserError, entry

S = TypeVar("S")
QUIET = [{"override hydra/hydra_logging": "none"}, {"override hydra/job_logging": "none"}]


@dataclass(frozen=True)
class NoSettings:
    """Of a command that has no settings but its experiment's."""


class Command(Generic[S]):
    """Run a function on the arguments of the command line.

    Args:
        name: of the command, `fgm <name>`.
        function: takes the config (None for a command without an experiment) and the settings; a number that it
            returns is what Hydra's sweepers optimise.
        settings: dataclass of the command's own keys. Its text is taken letter by letter, without Hydra's quotes.
        experiment: chosen if none is given; None for a command without one.
        groups: more groups of configs/, {key: group}; what is chosen of them is in the settings.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Any, S], float | None],
        settings: Callable[..., S] = NoSettings,
        experiment: str | None = DEFAULT,
        groups: dict[str, str] | None = None,
    ) -> None:
        self.name, self.function, self.settings, self.experiment = name, function, settings, experiment
        self.groups = groups or {}
        self.own = {f.name: None if f.default is MISSING else f.default for f in fields(settings)}  # type: ignore[arg-type]

    def __call__(self, arguments: list[str] | None = None) -> float | None:
        """
        Raises:
            UserError: bad input.
        """
        given = sys.argv[1:] if arguments is None else arguments
        texts = {key: word for key, _, word in (a.partition("=") for a in given) if key in self.text_keys()}
        rest = [self.group_override(a) for a in given if a.partition("=")[0] not in texts]
        outcome: list[float | None] = []
        errors: list[Exception] = []

        def job(composed: DictConfig) -> float | None:
            try:
                outcome.append(self.run(composed, texts))
            except Exception as error:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise  # a sweeper goes on with the other points
                errors.append(error)  # without Hydra's line about it
            return outcome[-1] if outcome else None

        for override in rest:
            require_name(override)
        self.store()
        with one_line_errors(lambda: self.keys(rest)), argv(rest):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=self.config_name())(job)()
        if errors:
            raise errors[0]
        return outcome[-1] if outcome else None

    def run(self, composed: DictConfig, texts: dict[str, str]) -> float | None:
        choice = HydraConfig.get().runtime.choices.get("experiment")
        names = {*self.own, *self.groups}
        own: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, [k for k in composed if k in self.own]))
        own |= {key: word or None for key, word in texts.items()}
        check_arguments(own, self.settings, self.name, "")
        with one_line_errors(self.keys):
            own |= {key: OmegaConf.to_container(composed[key], resolve=True) for key in self.groups if key in composed}
        config = None
        if choice is not None:
            config = resolved(OmegaConf.masked_copy(composed, [k for k in composed if k not in names]), choice)
        return self.function(config, self.settings(**own))

    def store(self) -> None:
        """Give Hydra the command's root: the suite's with the settings, or the settings only."""
        if self.config_name() == "config":
            return
        groups = [{f"{group}@{key}": None} for key, group in self.groups.items()]
        root = {key: value for key, value in self.own.items() if key not in self.groups}
        if self.experiment is None:
            start: list[Any] = ["_self_"]
            root["hydra"] = {"run": {"dir": "."}, "output_subdir": None}
        else:
            start = ["config", *groups, "_self_"]
        overridden = QUIET if self.experiment is None else []
        chosen = [{"override experiment": self.experiment}] if self.experiment not in (None, DEFAULT) else []
        node = {"defaults": [*start, *chosen, *overridden], **root}
        ConfigStore.instance().store(self.config_name(), node)

    def config_name(self) -> str:
        return "config" if self.experiment == DEFAULT and not self.own and not self.groups else f"{self.name}_command"

    def text_keys(self) -> set[str]:
        return {f.name for f in fields(self.settings) if f.type in (str, str | None) and f.name not in self.groups}  # type: ignore[arg-type]

    def group_override(self, argument: str) -> str:
        """key=name as Hydra writes a choice of a group for a key, group@key=name."""
        key = argument.partition("=")[0]
        return f"{self.groups[key]}@{argument}" if key in self.groups else argument

    def keys(self, arguments: Iterable[str] = ()) -> list[str]:
        """List the keys of the command, of its default experiment, and of those that the arguments choose."""
        known = experiment_names()
        chosen = {self.experiment, *(a.partition("=")[2] for a in arguments if a.startswith("experiment="))}
        return [*self.own, *self.groups, *dict.fromkeys(key for e in known if e in chosen for key in keys_of(e))]

    def main(self) -> None:
        """Run as a program."""
        entry(self, None)


def require_name(override: str) -> None:
    """Refuse an override without a key, and an empty choice of a group, such as make's EXP= leaves."""
    key, equals, name = override.partition("=")
    if not key:
        raise UserError(f"{override!r} is not of the form key=value")
    if equals and name.strip("'\"") in ("", "null") and (CONFIGS / key.lstrip("+").partition("@")[0]).is_dir():
        raise UserError(f"{key}={name} chooses nothing: give {key}=<name>, or leave it out")


@contextmanager
def argv(arguments: list[str]) -> Any:
    """Hydra reads sys.argv only."""
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors are raised instead of printed
    try:
        yield
    finally:
        sys.argv = before
