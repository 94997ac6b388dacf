"""Every experiment composes and says what it costs; every kind of bad input is one clear line and nothing is written."""

from pathlib import Path

import pytest
import yaml

from fgm.cli import train
from fgm.cli.checks import check
from fgm.cli.config import CONFIGS, LONGEST, changes, compose_experiment, digest, experiment_names, plain, run_name
from fgm.utils.errors import UserError

BAD = {
    "unknown experiment": (["experiment=digits_fmg"], "there is no experiment=digits_fmg; did you mean digits_fgm?"),
    "mistyped key": (["method.t_starr=0.5"], "did you mean method.t_star"),
    "mistyped key, appended": (["+method.t_starr=0.5"], "did you mean t_star"),
    "key that another experiment sets": (
        ["experiment=digits_teacher", "method.guidance=2"],
        "there is no setting method.guidance; this experiment does not set it: +method.guidance=... adds it",
    ),
    "mistyped key of another experiment": (
        ["experiment=digits_teacher", "method.label_dropouts=0.1"],
        "did you mean method.label_dropout?",
    ),
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
    "several values": (["method.t_star=0.5,0.9"], "method.t_star=0.5,0.9: a run has one value; give -m"),
    "renamed key": (["training.cycles=3"], "training.cycles; it is called training.max_steps now"),
    "no seed": (["~seed"], "also needs seed"),
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
        ["evaluation=random_features", "evaluation.suite.metrics=[fd]", "evaluation.suite.reference=/no/edm.npz"],
        "there is no reference file /no/edm.npz",
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


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        train.main(arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("experiment", experiment_names())
def test_an_experiment_composes_and_says_command_cost_and_expectation(experiment: str) -> None:
    config = compose_experiment(experiment, [])
    assert config["run_dir"] == f"outputs/{experiment}" and config["differs"] == []
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert len(lines) <= 25
    header = [line for line in lines if line.startswith("#")]
    assert header[1] == f"# make train EXP={experiment}"
    assert any(line.startswith("# Cost") for line in header)
    assert any(line.startswith("# Expect") for line in header)


def test_every_config_node_fits_its_constructor() -> None:
    texts = {path: path.read_text() for path in CONFIGS.glob("*/*.yaml")}
    nodes = {path: yaml.safe_load(text) or {} for path, text in texts.items() if "${" not in text and "???" not in text}
    checked = [check(node | {"_partial_": True}, path.stem) for path, node in nodes.items() if "_target_" in node]
    assert len(checked) > 30


SAME = [
    ["method.t_star=0.9", "seed=1"],
    ["seed=1", "method.t_star=0.90"],
    ["+seed=1", "method.t_star=9e-1", "method.steps=1"],
    ["seed=1", "method={t_star: 0.9}", "outputs=elsewhere", "logger=csv", "trainer.accelerator=cpu", "record=true"],
    ["seed=1", "method.t_star=0.9", "training.log_every_n_steps=7", "training.save_every_minutes=1", "evaluation.every=9"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", SAME)
def test_equal_configs_have_one_run_directory_and_one_digest(overrides: list[str]) -> None:
    config = compose_experiment("digits_fgm", [o.removeprefix("+") for o in overrides])
    assert Path(config["run_dir"]).name == "digits_fgm__method.t_star-0.9__seed-1"
    assert digest(config) == digest(compose_experiment("digits_fgm", SAME[0]))
    assert config["differs"] == ["method.t_star=0.9"], "another seed is the same experiment"


OTHER = [
    [], ["seed=1"], ["time=uniform"], ["time=uniform", "time.low=0.1"], ["time.std=2"], ["training.max_steps=9"],
    ["evaluation.n=9"], ["trainer.precision=64-true"], ['teacher.overrides=["seed=1"]'], ['teacher.overrides=["seed=2"]'],
]  # fmt: skip


def test_other_configs_have_other_run_directories_and_digests() -> None:
    configs = [compose_experiment("digits_fgm", overrides) for overrides in OTHER]
    assert len({config["run_dir"] for config in configs}) == len({digest(config) for config in configs}) == len(OTHER)


@pytest.mark.parametrize("value", ["a" * 300, "ä" * 60, "/home/me/data, (1)", "x"])
def test_a_run_directorys_name_is_short_plain_and_unique(value: str) -> None:
    names = {run_name("digits_fgm", {"data.directory": value + end, "seed": 1}) for end in "ab"}
    assert len(names) == 2
    assert all(len(name.encode()) <= LONGEST and name.isascii() and "/" not in name for name in names)


def test_changes_are_dotted_keys_and_ignored_ones_are_dotted_too() -> None:
    base = plain("digits_fgm")
    config = compose_experiment("digits_fgm", ["outputs=x", "optimizer.lr=1", "+method.logger=x"][:2])
    assert changes(base, config) == {"optimizer.lr": 1}
    assert changes(base, base | {"method": base["method"] | {"logger": "x"}}) == {"method.logger": "x"}
