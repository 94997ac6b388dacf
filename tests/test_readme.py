"""What the README says is run: its own-teacher example, its commands, its links, its tables."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fgm.config import read_recipe
from fgm.table import DOCUMENTS, ROOT, render

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
COMMANDS = [
    line.partition("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line
]


def arguments_of(command: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(command)[2:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_a_command_names_a_target_and_a_recipe_that_exist(command: str) -> None:
    target, arguments = shlex.split(command)[1], arguments_of(command)
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.M)
    overrides = shlex.split(arguments.get("ARGS", "")) if target == "train" else []
    read_recipe(arguments.get("EXP", "digits_fgm"), overrides)


def test_a_model_of_ones_own_is_distilled_as_the_readme_says(tmp_path: Path) -> None:
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    assert len(code.splitlines()) <= 20
    (tmp_path / "my_teacher.py").write_text(code)
    torch.save(
        torch.nn.ModuleDict(
            {"image": torch.nn.Linear(64, 64), "time": torch.nn.Linear(1, 64), "label": torch.nn.Embedding(10, 64)}
        ).state_dict(),
        tmp_path / "weights.pt",
    )
    (own,) = (arguments_of(c)["ARGS"] for c in COMMANDS if "my_teacher" in c)
    tiny = ["training.cycles=2", "training.batch_size=4", "evaluation.n=40", "evaluation.every=0", "run_dir=run"]
    done = subprocess.run(
        [sys.executable, "-m", "fgm.train", *own.split(), *tiny, "experiments=experiments", "logger=csv"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "generator.safetensors").exists()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere_and_tables_are_fresh(name: str) -> None:
    path = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    assert render(path.read_text(), ROOT / "experiments") == path.read_text()
