"""make hands prompts and overrides on letter by letter; help lists what there is."""

import os
import re
import resource
import shlex
import subprocess
from pathlib import Path

import pytest

from fgm.cli.config import experiment_names
from fgm.cli.sweep import sweeps

ROOT = Path(__file__).parents[2]
PROMPTS = [
    "a photo of a red circle left of a blue square",
    "a photo of a dog's bowl",
    'a sign that says "open", in rain',
    "it's \"both\" 'kinds'",
    "costs $5, or $(HOME) and ${HOME} and `date`",
    "100 % of #1; a & b | c > d \\ e * ?",
    "a=b, (c)",
]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that make takes for installed."""
    directory = tmp_path_factory.mktemp("venv")
    (directory / "installed").touch()
    return directory


def shown(venv: Path, *arguments: str, **environment: str) -> list[str]:
    """The words of the one command that make would run."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", f"VENV={venv}", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True, env=outer | environment,
    )  # fmt: skip
    line = done.stdout.strip()
    assert "\n" not in line
    return shlex.split(line)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_arrives_letter_by_letter(prompt: str, venv: Path) -> None:
    words = shown(venv, "sample", "EXP=shapes_fgm", f"PROMPT={prompt}", "ARGS=n=3 out=x.png")
    assert words[1:] == ["-m", "fgm.cli.sample", "experiment=shapes_fgm", f"prompt={prompt}", "n=3", "out=x.png"]


@pytest.mark.parametrize(
    "word", ["method.t_star=interval(0.5,1)", 'teacher.overrides=["seed=1"]', "x=$(HOME)", "it's", "a>b", "*"]
)
def test_words_of_args_arrive_letter_by_letter(word: str, venv: Path) -> None:
    assert shown(venv, "train", f"ARGS=seed=1 {word}")[1:] == [
        "-m",
        "fgm.cli.train",
        "experiment=digits_fgm",
        "seed=1",
        word,
    ]


def test_without_a_prompt_none_is_given_even_if_the_shell_has_a_prompt_of_its_own(venv: Path) -> None:
    assert shown(venv, "sample", PROMPT="%n@%m $ ")[1:] == ["-m", "fgm.cli.sample", "experiment=digits_fgm"]


def told(*command: str) -> subprocess.CompletedProcess[str]:
    """What is printed by a command that ends well, within two seconds of the processor's time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    return done


def test_help_lists_every_target_recipe_and_study() -> None:
    said = told("make", "help").stdout
    assert {f"EXP={name}" for name in experiment_names()} | {f"SWEEP={name}" for name in sweeps()} <= set(said.split())
    assert re.findall(r"^  make ([\w-]+)", said, re.M) == re.findall(
        r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), re.M
    )
