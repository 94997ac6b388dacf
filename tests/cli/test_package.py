"""The wheel holds the configs and runs from an empty folder, without diffusers, transformers, W&B and torch-fidelity."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from contextlib import chdir
from pathlib import Path

import pytest
from hatchling.build import build_wheel

ROOT = Path(__file__).parents[2]
EXTRAS = ("diffusers", "transformers", "wandb", "torch_fidelity", "jinja2", "pyarrow")
TINY = ["training.max_steps=2", "method.generator_init=random", "method.online_init=random", "method.ode_pairs=0",
        "evaluation.n=100", "evaluation.every=0", "trainer.accelerator=cpu", "logger=csv"]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: the wheel's content beside what the core dependencies installed, without the extras."""
    root = tmp_path_factory.mktemp("wheel")
    with chdir(ROOT):
        wheel = root / build_wheel(str(root))
    site = root / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.replace("-", "_").lower()
        if not name.startswith((*EXTRAS, "fgm", "_fgm", "__editable__")) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    return site


def python(site: Path, folder: Path, *arguments: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=clean | {"PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_trains_and_draws_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    assert (site / "fgm" / "py.typed").exists() and (
        site / "fgm" / "configs" / "experiment" / "digits_fgm.yaml"
    ).exists()
    script = f"""
import sys
from fgm.cli import main, train
import fgm
print(fgm.__file__)
main.dispatch(["--version"])
train.main(["experiment=mixture_fgm", *{TINY}, "run_dir=run"])
print(tuple(fgm.load("run")(n=3).shape))
"""
    file, version, *_, shape = python(site, tmp_path, "-c", script).splitlines()
    assert Path(file).is_relative_to(site) and version.startswith("fgm 0.") and shape == "(3, 2)"


def test_importing_the_package_imports_neither_torch_nor_hydra(tmp_path: Path) -> None:
    script = "import sys, fgm; assert not {'torch', 'hydra', 'lightning'} & set(sys.modules); assert 'load' in dir(fgm)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
