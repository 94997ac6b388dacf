"""W&B is used if wandb itself finds an account for its server, and else a run says in one line why not."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import Said

from fgm.training.loggers import build_loggers, wandb_if_configured, wandb_logger

pytestmark = pytest.mark.field
KEY = "0" * 40


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """What a run says of its loggers in an environment with this ~/.netrc; wandb_logger is replaced, and no server is asked."""
    wandb = pytest.importorskip("wandb")
    from wandb.sdk import wandb_login, wandb_setup
    from wandb.sdk.lib import wbauth

    for name in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wandb_login, "_print_logged_in_message", lambda *_, **__: None)
    monkeypatch.setattr("fgm.training.loggers.wandb_logger", lambda *_: print("W&B"))

    def say(netrc: str | None = None, mode: int = 0o600, **variables: str) -> list[str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if netrc is not None:
            (tmp_path / ".netrc").write_text(netrc)
            (tmp_path / ".netrc").chmod(mode)
        wandb_setup.teardown()
        wbauth.unauthenticate_session(update_settings=False)
        with (tmp_path / "said").open("w+") as file:
            console = Console(file=file, soft_wrap=True, markup=False)
            made = build_loggers({"wandb": wandb_if_configured}, run_dir=tmp_path, name="n", config={}, console=console)
            assert not made
            file.seek(0)
            return file.read().splitlines()

    yield say
    wandb_setup.teardown()
    wbauth.unauthenticate_session(update_settings=False)
    del wandb


def entry_of(host: str) -> str:
    return f"machine {host}\n  login user\n  password {KEY}\n"


@pytest.mark.parametrize(("netrc", "variables"), [
    (entry_of("api.wandb.ai"), {}),
    (entry_of("wandb.my.edu:8443"), {"WANDB_BASE_URL": "https://wandb.my.edu:8443"}),
    (entry_of("wandb.my.edu"), {"WANDB_BASE_URL": "http://wandb.my.edu"}),
    ("", {"WANDB_API_KEY": KEY}),
    ("machine {{ odd", {"WANDB_MODE": "offline"}),
], ids=["cloud", "own server with a port", "own server", "key", "offline"])  # fmt: skip
def test_an_account_is_found_where_wandb_finds_it(
    netrc: str, variables: dict[str, str], account: Any, capsys: Said
) -> None:
    assert account(netrc, **variables) == [] and capsys.readouterr().out == "W&B\n"


@pytest.mark.parametrize(("netrc", "variables", "line"), [
    ("", {}, "W&B is not configured: wandb login, or set WANDB_API_KEY or WANDB_MODE=offline"),
    (entry_of("api.wandb.ai"), {"WANDB_BASE_URL": "https://wandb.my.edu"}, "W&B is not configured"),
    ("machine {{ odd", {}, "W&B is not configured"),
    ("", {"WANDB_MODE": "disabled"}, "(WANDB_MODE=disabled)"),
    ("", {"WANDB_API_KEY": "short"}, "W&B did not start (WANDB_API_KEY invalid: API key must have 40+ characters"),
    ("", {"WANDB_BASE_URL": "nonsense"}, "W&B did not start (1 validation error"),
], ids=["none", "another server's", "odd netrc", "disabled", "bad key", "bad server"])  # fmt: skip
def test_without_an_account_one_line_says_why(netrc: str, variables: dict[str, str], line: str, account: Any) -> None:
    (said,) = account(netrc, **variables)
    assert line in said


def test_a_netrc_that_cannot_be_read_is_none(account: Any, tmp_path: Path) -> None:
    (tmp_path / ".netrc").mkdir()
    (said,) = account()
    assert "W&B is not configured" in said


def test_wandb_that_is_not_installed_is_named_with_its_extra(account: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.training.loggers.find_spec", lambda name: None)
    (said,) = account()
    assert 'pip install "fgm[wandb]"' in said


@pytest.mark.parametrize(("given", "variables", "found"), [
    ({}, {}, ("fgm", None)),
    ({}, {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team"}, ("mine", "team")),
    ({"project": "its", "entity": "lab"}, {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team"}, ("its", "lab")),
], ids=["default", "environment", "config"])  # fmt: skip
def test_project_and_entity_are_the_configs_or_the_environments(
    given: dict[str, str], variables: dict[str, str], found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EnoughError(Exception):
        pass

    def noted(**settings: Any) -> None:
        seen.append((settings["project"], settings["entity"]))
        raise EnoughError

    seen: list[Any] = []
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fgm.training.loggers.StepWandbLogger", noted)
    with pytest.raises(EnoughError):
        wandb_logger(tmp_path, "n", {}, Console(quiet=True), **given)
    assert seen == [found]
