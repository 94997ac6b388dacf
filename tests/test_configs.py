"""Every recipe composes and says what it costs; every kind of bad input is one clear line and exit code 2."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fgm.cli.checks import check
from fgm.cli.config import CONFIGS, digest, parse_arguments, read_recipe, recipes, run_name
from fgm.utils.errors import UserError

RECIPES = recipes()

BAD = {
    "unknown recipe": (["experiment=digits_fmg"], "did you mean digits_fgm"),
    "mistyped key": (["method.t_starr=0.5"], "did you mean method.t_star"),
    "mistyped key, appended": (["+method.t_starr=0.5"], "did you mean t_star"),
    "unknown root key": (["learning_rate=1"], "no setting learning_rate"),
    "t_star too large": (["method.t_star=1.5"], "method.t_star = 1.5: must lie in (0, 1]"),
    "t_star zero": (["method.t_star=0"], "must lie in (0, 1]"),
    "not a number": (["training.max_steps=many"], "training.max_steps = many: must be of type int"),
    "not whole": (["seed=1.5"], "seed = 1.5: must be of type int"),
    "no such choice": (["method.c_in=two"], "must be one of one, t_star, variance"),
    "no such start": (["method.online_init=warm"], "must be one of teacher, fit, random"),
    "bf16 weights": (["trainer.precision=bf16-true"], "trainer.precision = bf16-true: give bf16-mixed"),
    "no such noun": (["time=logitnormal"], "there is no time=logitnormal; did you mean logit_normal?"),
    "density out of range": (["time.std=-1"], "time.std = -1: must lie in (0, inf)"),
    "empty batch": (["training.batch_size=0"], "must lie in [1, inf)"),
    "several devices": (["trainer.devices=2"], "trainer.devices = 2 needs a strategy for several: give strategy=ddp"),
    "several values": (
        ["method.t_star=0.5,0.9"],
        "method.t_star=0.5,0.9: a run has one value; several are for a study",
    ),
    "unquoted": (["teacher.overrides=[data=spirals]"], "[data=spirals]: cannot be read; a value that holds =, a comma"),
    "a file for a folder": (["outputs=README.md"], "README.md is a file, and a folder is needed: give another place"),
    "no key=value": (["t_star"], "is not of the form key=value"),
    "missing teacher": (["teacher.train=false", "outputs=/nowhere"], "is missing and teacher.train is false"),
    "missing teacher file": (["teacher=file", "teacher.file=/no/such.safetensors"], "there is no file"),
    "missing checkpoint": (
        ["experiment=cifar10_edm_fgm"],
        "there is no checkpoint edm-cifar10-32x32-uncond-vp.pkl; it",
    ),
    "missing data": (["experiment=fashion_teacher", "data.directory=/nowhere"], "fashion-mnist needs train-images"),
    "missing Inception": (
        ["evaluation=fid_edm", "evaluation.suite.extractor.weights=/no/w.pth"],
        "no Inception weights",
    ),
    "missing reference": (
        ["evaluation=random_features", "+evaluation.suite.reference=/no/edm.npz"],
        "there is no file /no/edm.npz",
    ),
    "no such protocol": (
        ["evaluation=fid_edm", "evaluation.suite.protocol=fid"],
        "must be one of edm, torch-fidelity, clean-legacy",
    ),
    "no such target": (
        ["method.weighting._target_=fgm.flow.losses.x0_weight"],
        "method.weighting._target_ = fgm.flow.losses.x0_weight: fgm.flow.losses defines no x0_weight; "
        "did you mean x_0_weight?",
    ),
    "no such weights": (
        ["teacher=torchcfm", "teacher.checkpoint=x.pt", "teacher.weights=ema"],
        "teacher.weights = ema: must be one of ema_model",
    ),
    "no list": (["network=unet", "network.multipliers=2"], "network.multipliers = 2: must be a list"),
    "missing value": (["teacher=file"], "teacher.file has no value"),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fgm.cli.train", *arguments], capture_output=True, text=True)


def seconds_of_children() -> float:
    """The processor's, however busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    before = seconds_of_children()
    outputs = [] if any(a.startswith("outputs=") for a in arguments) else [f"outputs={tmp_path}"]
    done = run(*arguments, *outputs)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert seconds_of_children() - before < 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_and_says_command_cost_and_expectation(recipe: str) -> None:
    config = read_recipe(recipe, [])
    assert config["run_dir"] == f"outputs/{recipe}"
    lines = (CONFIGS / "experiment" / f"{recipe}.yaml").read_text().splitlines()
    assert len(lines) <= 25
    header = [line for line in lines if line.startswith("#")]
    assert header[1] == f"# make train EXP={recipe}"
    assert any(line.startswith("# Cost") for line in header)
    assert any(line.startswith("# Expect") for line in header)


def test_every_config_node_fits_its_constructor() -> None:
    for path in CONFIGS.glob("*/*.yaml"):
        node = yaml.safe_load(path.read_text()) or {}
        if "_target_" in node and "${" not in path.read_text() and "???" not in path.read_text():
            check(node | {"_partial_": True}, path.stem)


def test_the_same_command_names_the_same_run() -> None:
    assert run_name("digits_fgm", []) == "digits_fgm"
    assert run_name("digits_fgm", ["seed=1", "outputs=/tmp/x"]) == "digits_fgm__seed-1"
    assert len(run_name("digits_fgm", [f"a{i}=1" for i in range(100)])) <= 120
    assert digest(read_recipe("digits_fgm", [])) == digest(read_recipe("digits_fgm", ["outputs=/tmp/x"]))
    assert digest(read_recipe("digits_fgm", [])) != digest(read_recipe("digits_fgm", ["seed=1"]))


def test_the_last_recipe_named_counts_and_none_means_digits() -> None:
    assert parse_arguments(["seed=1"]) == ("digits_fgm", ["seed=1"])
    assert parse_arguments(["experiment=a", "seed=1", "experiment=b"]) == ("b", ["seed=1"])
    with pytest.raises(UserError, match="key=value"):
        parse_arguments(["--seed"])
