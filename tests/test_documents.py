"""What the documents say is run: commands are composed, examples executed, links followed, tables made of rows."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import Pictures, dit
from documents import ALL, blocks, commands, compose, own_module, started, text_of
from hydra.utils import instantiate
from toy_trainings import pieces

import fgm.cli.config
import fgm.cli.table
import fgm.cli.train
from fgm.cli.config import CONFIGS, compose_experiment
from fgm.cli.sweep import read_sweep
from fgm.cli.table import BLOCK, DOCUMENTS, OVERVIEW, ROOT, header, measured, render, study_line
from fgm.evaluation import measure
from fgm.flow import losses
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.teachers.bundled import names as bundled
from fgm.teachers.bundled import run as bundled_run
from fgm.training.diagnostics import THRESHOLDS
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement, append_row

COMMANDS = sorted({command: name for name in ALL for command in commands(name)}.items())
OWN_TABLES = "experiments/identity/"  # see tests/experiments/test_identity.py
BY_HAND = [name for name in DOCUMENTS if not name.startswith(("src/", OWN_TABLES))]
WRONG = {
    "make trian": "no such target",
    "make train EXP=digits_fmg": "did you mean digits_fgm",
    'make train ARGS="method.t_starr=1"': "did you mean method.t_star",
    'make sample ARGS="m=3"': "no setting m",
    'make eval ARGS="evaluator=digit"': "digit",
    'make train ARGS="method.t_star=2"': "must lie in (0, 1]",
    "fgm train method.t_star=2": "must lie in (0, 1]",
    'make train N="3"': "does not read",
}


@pytest.mark.parametrize("command", [c for c, _ in COMMANDS if not c.startswith("pip ")])
def test_a_command_in_a_document_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, arguments = started(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in filter(None, map(own_module, arguments)):
        (tmp_path / name).write_text(code)
    if module and "--help" not in arguments:
        compose(module, arguments)


@pytest.mark.parametrize(("command", "message"), WRONG.items())
def test_a_mistake_in_a_documented_command_is_noticed(command: str, message: str) -> None:
    with pytest.raises((AssertionError, UserError)) as noticed:
        compose(*started(command))
    assert message in str(noticed.value)


EXAMPLES = {
    "python": [
        "fgm.load",
        "class MyDistillation",
        "class DecoupledGuidance",
        "class Parabolic",
        "class Radii",
        "class Stripe",
        "class MyLogger",
        "class MyCallback",
        "class MyTeacher",
        "def encode(model",  # this and the next: tests/teachers
        "LongCatImagePipeline",
    ],
    "yaml": ["EXP=spirals_fgm"],
}


def test_every_example_is_one_that_the_tests_below_run() -> None:
    found = {kind: [block for name in ALL for block in blocks(name, kind)] for kind in EXAMPLES}
    for kind, holds in EXAMPLES.items():
        assert [word in block for word, block in zip(holds, found[kind], strict=True)] == [True] * len(holds)
    fences = re.findall(r"^```(.+)$", "\n".join(text_of(name) for name in ALL), re.M)
    assert {*fences} == {*EXAMPLES, "bash"}


@pytest.mark.parametrize("name", ALL)
def test_an_extra_that_is_to_be_installed_is_there(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*re.findall(r"'\.\[([\w-]+)\]'", text_of(name))} <= extras.keys()


def example(kind: str, holds: str) -> str:
    """Return the documents' one block that contains a word."""
    (code,) = (block for name in ALL for block in blocks(name, kind) if holds in block)
    return code


def argument(holds: str) -> list[str]:
    (own,) = (shlex.split(c)[-1].removeprefix("ARGS=") for name in ALL for c in commands(name) if holds in c)
    return own.split()


def test_a_model_of_ones_own_is_distilled_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = example("python", "MyTeacher")
    assert len(code.splitlines()) <= 20
    (tmp_path / "my_teacher.py").write_text(code)
    torch.save(
        torch.nn.ModuleDict(
            {"image": torch.nn.Linear(64, 64), "time": torch.nn.Linear(1, 64), "label": torch.nn.Embedding(10, 64)}
        ).state_dict(),
        tmp_path / "weights.pt",
    )
    tiny = ["training.max_steps=2", "training.batch_size=4", "evaluation.n=40", "evaluation.every=0", "run_dir=run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    fgm.cli.train.main([*argument("my_teacher"), *tiny, "experiments=experiments", "logger=csv"])
    assert (tmp_path / "run" / "generator.safetensors").exists()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The object of a noun of mixture_fgm, by an example of the README in a file of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(noun: str, file: str) -> Any:
        arguments = argument(file)
        (tmp_path / f"{file}.py").write_text(example("python", arguments[0].rpartition(".")[2]))
        return instantiate(compose_experiment("mixture_fgm", arguments)[noun])

    return made


def test_a_path_of_ones_own_is_one_file(own: Any, float64: None) -> None:
    path, t = own("path", "my_path"), torch.linspace(0.1, 0.9, 9)
    x_0, eps = torch.randn(9, 2), torch.randn(9, 2)
    x_t, c = path.interpolate(x_0, eps, t)
    torch.testing.assert_close(path.x_0_from_velocity(x_t, c, t), x_0)
    _, slope = torch.func.jvp(lambda t: path.interpolate(x_0, eps, t)[0], (t,), (torch.ones(9),))
    torch.testing.assert_close(slope, c)


def test_guidance_as_a_term_at_the_times_of_the_loss_has_the_gradient_of_the_guided_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scope: dict[str, Any] = {}
    exec(example("python", "class DecoupledGuidance"), scope)
    parts = pieces(teacher=dit(), network=dit, data=Pictures(True))
    module = scope["DecoupledGuidance"](**parts, t_star=0.9, guidance="none", detach=True, lambda_1=0.0)
    x_0, eps, t = torch.randn(5, *dit().shape, requires_grad=True), torch.randn(5, *dit().shape), torch.rand(5)
    labels, (x_t, c) = torch.arange(5) % 3, module.path.interpolate(x_0, eps, t)
    monkeypatch.setattr(module, "noised", lambda *_: (x_t, c, t))
    u, v = (net(x_t, t, labels) for net in (module.teacher, module.online))
    guided = ClassifierFreeGuidance(module.teacher, 1 + module.weight)(x_t, t, labels)
    apart = module.generator_loss(u, v, c, x_0, x_t, t, labels).sum()
    whole = losses.fgm(guided, v, c, 0.0, detach=True).sum()
    torch.testing.assert_close(*(torch.autograd.grad(loss, x_0, retain_graph=True) for loss in (apart, whole)))


def test_a_metric_of_ones_own_is_one_file(own: Any) -> None:
    found = {m.metric: m for m in measure(own("evaluation", "radii").suite, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))}
    assert found["radius"].value == 3.0 and found["radius"].n == 2 and "sliced_w2" in found


def test_a_recipe_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(fgm.cli.config, "CONFIGS", tmp_path / "configs")
    text = example("yaml", "spirals_fgm")
    (tmp_path / "configs" / "experiment" / "spirals_fgm.yaml").write_text(text)
    config = compose_experiment("spirals_fgm", [])
    assert config["data"]["_target_"].endswith("Spirals") and config["teacher"]["overrides"] == ["data=spirals"]
    assert all(word in text for word in ("# make train EXP=spirals_fgm", "# Cost:", "# Expect:"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere_and_tables_are_fresh(name: str) -> None:
    path = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    assert render(path.read_text(), ROOT / "experiments") == path.read_text()


@pytest.mark.parametrize("name", BY_HAND)
def test_no_number_stands_in_a_table_that_no_row_made(name: str) -> None:
    assert numbers_by_hand(text_of(name)) == []


def numbers_by_hand(text: str) -> list[str]:
    """Of cells outside of the tables that are made; names, links and code apart."""
    rest = OVERVIEW.sub("", BLOCK.sub("", text))
    cells = [cell for line in rest.splitlines() if line.startswith("|") for cell in line.split("|")]
    plain = [re.sub(r"\[[^\]]*\]\([^)]*\)|`[^`]*`", "", cell) for cell in cells]
    return [number for cell in plain for number in re.findall(r"(?<!\w)\d[\d.,]*", cell)]


def test_a_number_by_hand_is_found() -> None:
    made = "<!-- table: toy -->\n| 0.5 |\n<!-- end -->\n"
    assert numbers_by_hand(f"{made}| [01](x/1.py) | `n=3` | x_0, **0.25** | about 7 |\n3 and 4\n") == ["0.25", "7"]


@pytest.mark.parametrize("experiment", bundled())
def test_the_weights_that_come_with_the_suite_have_the_value_of_their_row(experiment: str) -> None:
    row = bundled_run(experiment)["row"]
    value = next(m for m in row["results"] if m["metric"] == "shapeeval")
    (line,) = (
        x for x in text_of("src/fgm/teachers/bundled/README.md").splitlines() if x.startswith(f"| {experiment}.safe")
    )
    assert f"ShapeEval {value['value']:.3f} " in line and f"n = {value['n']} " in line


@pytest.mark.parametrize("metric", THRESHOLDS)
def test_the_signs_of_failure_have_the_bounds_of_the_code(metric: str) -> None:
    (line,) = (x for x in text_of("docs/evaluation.md").splitlines() if x.startswith(f"| {metric} |"))
    assert f"| `{THRESHOLDS[metric].low:g} to {THRESHOLDS[metric].high:g}` |" in line


def test_a_recipe_is_told_with_its_first_sampler_and_its_teacher(tmp_path: Path) -> None:
    def result(value: float, nfe: int, weights: str) -> dict[str, Any]:
        return Measurement("fd", value, 100, "p", nfe, weights).row()

    results = [result(0.5, 1, "ema"), result(0.7, 1, "raw"), result(0.25, 50, "teacher"), result(9.0, 0, "real")]
    row = {"seed": 0, "study_digest": "a", "train_s": 90.0, "device": "cpu", "results": results}
    append_row(tmp_path / "toy" / "runs.jsonl", row)
    assert measured("toy", tmp_path) == "fd 0.5 in one call, 0.25 in 50 calls (n = 100); 1.5 min"
    append_row(tmp_path / "toy" / "runs.jsonl", row | {"seed": 1, "results": [result(1.5, 1, "ema")]})
    assert measured("toy", tmp_path) == "fd 1 ± 0.71 in one call, 0.25 in 50 calls (n = 100, 2 seeds); 1.5 min"
    assert measured("nothing", tmp_path) == ""


def test_a_study_is_told_with_its_best_point(tmp_path: Path) -> None:
    def run(t_star: float, seed: int, value: float) -> dict[str, Any]:
        told = {"experiment": "digits_fgm", "study": "t_star", "metrics": {"fd": "min"}, "sweep_digest": "a"}
        results = [Measurement("fd", value, 100, "p", 1, "ema").row()]
        return told | {"seed": seed, "swept": {"method.t_star": t_star}, "results": results}

    values = {(0.5, 0): 2.0, (0.5, 1): 4.0, (0.7, 0): 1.0, (0.7, 1): 3.0, (0.9, 0): 9.0}
    for (t_star, seed), value in values.items():
        append_row(tmp_path / "t_star" / "runs.jsonl", run(t_star, seed, value))
    told = "| 12 | digits_fgm: fd 2 ± 1.4 (n = 100) at t_star 0.7, 1 near it; 5 runs |"
    assert study_line(read_sweep("t_star"), tmp_path).endswith(told)
    assert study_line(read_sweep("ema"), tmp_path).endswith(" |  |")


def test_a_recipe_is_told_by_the_first_sentences_of_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fgm.cli.table, "CONFIGS", tmp_path)
    (tmp_path / "experiment").mkdir()
    lines = ["@package _global_", "make train EXP=toy", "A toy in <one> call, at", "t* 0.714. Ours: all."]
    lines += ["Cost: not yet run; a day of 2", "GPUs. A guess.", "Expect: no finished run has been recorded yet."]
    text = "\n".join(f"# {line}" for line in lines)
    (tmp_path / "experiment" / "toy.yaml").write_text(f"{text}\nmethod: {{t_star: 0.9}}  # not this\n")
    assert header("toy") == ["A toy in &lt;one> call, at t* 0.714", "a day of 2 GPUs", ""]
