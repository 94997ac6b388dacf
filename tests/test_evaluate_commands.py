"""evaluate and export: what they write is read again, and bad input is one line and exit code 2."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY, Said, finished, light, nan_weights, refused, rescale, results_of, run_dir

import fgm.evaluate
import fgm.export
import fgm.sample
from fgm.data.shapes.dataset import Shapes
from fgm.errors import Refusal
from fgm.evaluation.panel import DISTANCES
from fgm.evaluation.sampling import Source
from fgm.evaluation.shape_prompts import VOCABULARY
from fgm.evaluation.sources.folder import FolderSource
from fgm.evaluation.sources.geneval import GenEvalSource
from fgm.evaluation.sources.sampler import SamplerSource
from fgm.evaluators import make_evaluation, require_device
from fgm.pixels.quantise import dequantise
from fgm.records import Measurement
from fgm.text.geneval.prompts import read_prompts
from fgm.text.shapes.metadata import every, metadata
from fgm.text.shapes.vocabulary import decode


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def run(home: Path) -> list[str]:
    """The arguments that name a finished run of random weights."""
    return finished(home / "outputs", "digits_fgm", TINY)


@pytest.fixture(scope="module")
def exported(run: list[str], home: Path) -> Path:
    fgm.export.main([*run, "format=png", f"out={home / 'png'}"])
    return home / "png"


def ema(results: dict, weights: str = "ema") -> list[tuple[str, float, int]]:
    return [(r["metric"], r["value"], r["n"]) for r in results["results"] if r["weights"] == weights]


def test_a_folder_of_a_runs_samples_gets_the_runs_numbers(
    run: list[str], exported: Path, tmp_path: Path, capsys: Said
) -> None:
    fgm.evaluate.main([*run, "shard_size=20"])
    memory = results_of(capsys.readouterr().out)
    fgm.evaluate.main([f"samples_dir={exported}", "evaluator=digits", "n=60", "shard_size=20", f"outputs={tmp_path}"])
    folder = results_of(capsys.readouterr().out)
    assert ema(memory) == ema(folder, "folder")
    bands = ["power_low", "power_mid", "power_high"]
    assert [name for name, *_ in ema(memory)] == [*DISTANCES, "accuracy", "class_tv", "diversity", *bands]
    shards = [sorted((place / "evaluation").glob("*/shards/*")) for place in (run_dir(run), tmp_path)]
    assert [p.read_bytes() for p in shards[0]] == [p.read_bytes() for p in shards[1]] and len(shards[0]) == 3


def test_an_evaluation_tells_its_provenance_and_comes_again_from_its_shards(run: list[str], capsys: Said) -> None:
    fgm.evaluate.main([*run, "n=40", "eval_seed=7"])
    first, told = results_of(capsys.readouterr().out), capsys
    fgm.evaluate.main([*run, "n=40", "eval_seed=7"])
    said = told.readouterr().out
    again = results_of(said)
    assert again["results"] == first["results"] and again["key"] == first["key"]
    assert "1 of 1 shards are there already" in said and (first["timing_s"]["found"], again["timing_s"]["found"]) == (
        0,
        1,
    )
    source = first["evaluation"]["source"]
    assert source["seed"] == 7 and first["evaluation"]["index_range"] == [0, 40] and source["nfe"] == 1
    assert len(source["weights_sha256"]) == 64 and first["env"]["world_size"] == 1
    assert first["evaluation"]["panel"]["extractor"]["id"] == "small-classifier"
    assert all(r["protocol"] and r["n"] for r in first["results"])


def test_repeats_are_as_many_seeds_with_their_mean_spread_and_least(run: list[str], capsys: Said) -> None:
    fgm.evaluate.main([*run, "n=40", "eval_seed=3", "repeats=2"])
    paths = re.findall(r"provenance: (.*results\.json)", capsys.readouterr().out)
    one, both = (json.loads(Path(path).read_text()) for path in paths)
    first, second = ({m: v for m, v, _ in ema(told)} for told in (one, {"results": both["results"][:12]}))
    assert first["fd"] != second["fd"] and both["evaluation"]["source"]["seed"] == 4
    over = next(r for r in both["results"] if r["protocol"].startswith("mean of 2 seeds of samples; small-classifier"))
    assert (
        over["metric"] == "fd" and over["values"] == [first["fd"], second["fd"]] and over["min"] == min(over["values"])
    )
    assert over["value"] == pytest.approx(sum(over["values"]) / 2) and over["sd"] > 0 and over["n"] == 40


def test_what_only_some_seeds_measure_has_no_mean() -> None:
    """Crispness is of objects, and the samples of one seed may show none."""
    told = [
        [Measurement("crispness", 0.9, 5, "p"), Measurement("stray", 0.1, 5, "p")],
        [Measurement("stray", 0.3, 5, "p")],
    ]
    assert [(m.metric, m.value) for m in fgm.evaluate.spread(told)] == [("stray", pytest.approx(0.2))]


def test_other_weights_are_another_evaluation(run: list[str], tmp_path: Path, capsys: Said) -> None:
    shutil.copytree(run_dir(run), tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    keys = set()
    for scale in (1.0, 0.5):
        rescale(tmp_path / "run", scale)
        fgm.evaluate.main([*run, f"run_dir={tmp_path / 'run'}", "n=40"])
        keys.add(results_of(capsys.readouterr().out)["key"])
    assert len(keys) == 2 and len(list((tmp_path / "run" / "evaluation").iterdir())) == 2


def test_exports_are_read_again(run: list[str], exported: Path, home: Path) -> None:
    fgm.export.main([*run, "format=edm", "n=60", f"out={home / 'edm'}"])
    flat, edm = FolderSource(exported), FolderSource(home / "edm", recursive=True)
    assert flat.describe() == edm.describe() and flat.n == 60 and flat.shape == (1, 8, 8)
    assert (home / "edm" / "00000" / "img00000059.png").exists()
    assert flat.labels is not None and flat.labels.tolist() == [i % 10 for i in range(60)]
    fgm.export.main([*run, "n=20", "eval_seed=5"])
    assert FolderSource(run_dir(run) / "export" / "png").describe() != FolderSource(exported, n=20).describe()


class Echo(torch.nn.Module):
    """Draws the first words of its prompt as pixels."""

    def forward(self, z: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return dequantise(tokens.to(torch.uint8)).view(-1, 1, 3, 4).expand(-1, 3, -1, -1)


def test_prompts_reach_their_own_folders(
    run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def echo(config: dict, evaluation: Any, data: Shapes, n: int, seed: int, device: torch.device) -> SamplerSource:
        return evaluation.source(Source("echo", Echo(), 1, "ema"), data, device, n, seed)

    monkeypatch.setattr(fgm.export, "make", lambda node, what: Shapes())
    monkeypatch.setattr(fgm.export, "sampler_source", echo)
    asked = [*run, "format=geneval", "samples=3", "vocabulary=shapes", f"out={tmp_path / 'layout'}"]
    lines = metadata(every("color_attr")[::17])
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fgm.export.main([*asked, f"metadata={tmp_path / 'prompts.jsonl'}"])
    layout = GenEvalSource(tmp_path / "layout", read_prompts(tmp_path / "prompts.jsonl", VOCABULARY), per_prompt=3)
    tokens = layout.take(range(layout.n)).x[:, 0].flatten(1).long()
    assert decode(tokens) == [line["prompt"] for line in lines for _ in range(3)]
    assert "n follows from the prompts" in refused(
        fgm.export.main, [*asked[:-1], "metadata=x", "n=5"], capsys, monkeypatch
    )


def truncated(exported: Path, tmp_path: Path) -> list[str]:
    shutil.copytree(exported, tmp_path / "in")
    file = tmp_path / "in" / "000007.png"
    file.write_bytes(file.read_bytes()[:-5])
    return [f"samples_dir={tmp_path / 'in'}", "evaluator=digits", f"outputs={tmp_path / 'out'}"]


Case = Callable[[list[str], Path, Path], list[str]]
EVALUATE: dict[str, tuple[Case, str]] = {
    "truncated PNG": (lambda run, png, tmp: truncated(png, tmp), r"000007\.png: is no whole PNG \(truncated\)"),
    "fewer than promised": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=digits", "n=61"],
        "holds 60 PNGs, and n = 61 are promised",
    ),
    "too few to measure": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=digits", "n=20", f"outputs={tmp}/out"],
        "fd in the 32 features of small-classifier needs 33 samples or more, not 20",
    ),
    "NaN samples": (lambda run, png, tmp: nan_weights(run, tmp), "60 of the samples 0 to 59 are not finite, number 0"),
    "unknown evaluator": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=digit"],
        "evaluator = digit: unknown; did you mean digits",
    ),
    "unknown evaluator of a run": (lambda run, png, tmp: [*run, "evaluator=xyz"], "evaluator = xyz: unknown; there"),
    "evaluator without data": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=points"],
        "evaluator = points compares with data, and a folder does not say with which: give data=<name>",
    ),
    "evaluator of points": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=points", "data=digits"],
        "this evaluator measures points, and Digits holds images",
    ),
    "data of points": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=points", "data=ring", f"outputs={tmp}/out"],
        r"points are measured at \(2,\), and these samples are \(1, 8, 8\)",
    ),
    "evaluator of prompts without data": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=shape_eval"],
        "evaluator = shape_eval compares with data, .*: give data=<name> of configs/data$",
    ),
    "files that an evaluator needs": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=geneval", "data=shapes"],
        "^error: evaluator.panel.metadata = None: give prompts/evaluation_metadata.jsonl",
    ),
    "unknown data": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=points", "data=rings"],
        "data = rings: unknown; did you mean ring",
    ),
    "unknown evaluator setting": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=digits", "evaluator.panel.weight=x"],
        "there is no setting evaluator.panel.weight",
    ),
    "setting of no evaluator": (
        lambda run, png, tmp: [*run, "evaluator.n=5"],
        "evaluator.n=5: is a setting of evaluator=<name>, and none is given",
    ),
    "no evaluator": (lambda run, png, tmp: [f"samples_dir={png}"], "evaluator= is missing"),
    "no folder": (lambda run, png, tmp: [f"samples_dir={png}x", "evaluator=digits"], "is no folder"),
    "unknown setting": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluater=digits"],
        "there is no setting evaluater; did you mean evaluator",
    ),
    "no value": (lambda run, png, tmp: [*run, "n"], "'n' is not of the form key=value"),
    "no number": (lambda run, png, tmp: [*run, "n=many"], "n = many must be a whole number from 1"),
    "a cut batch": (lambda run, png, tmp: [*run, "shard_size=30"], "must be a multiple of the evaluator's batch, 20"),
    "no finished run": (lambda run, png, tmp: [*run, "seed=9"], "holds no finished run: make train EXP=digits_fgm"),
}  # fmt: skip


@pytest.mark.parametrize("case, message", EVALUATE.values(), ids=EVALUATE)
def test_what_cannot_be_measured_is_one_line(
    case: Case,
    message: str,
    run: list[str],
    exported: Path,
    tmp_path: Path,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = refused(fgm.evaluate.main, case(run, exported, tmp_path), capsys, monkeypatch)
    assert re.search(message, line)
    assert not list(tmp_path.glob("**/evaluation/*"))


def test_a_complaint_names_settings_as_the_command_takes_them_and_modules_as_they_are(tmp_path: Path) -> None:
    line = {"tag": "single_object", "include": [{"class": "unicorn", "count": 1}], "prompt": "a photo of a unicorn"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    detector = {"_target_": "fgm.evaluation.shape_detector.ShapeDetector"}
    panel = {"_target_": "fgm.evaluation.geneval.panel.GenEvalPanel", "detector": detector}
    node = {
        "_target_": "fgm.evaluation.evaluation.Evaluation",
        "panel": panel | {"metadata": str(tmp_path / "prompts.jsonl")},
    }
    with pytest.raises(Refusal, match=r"unknown class 'unicorn'; see fgm\.evaluation\.geneval\.vocabulary$"):
        make_evaluation(node)
    inception = {"_target_": "fgm.evaluation.features.inception.Inception", "weights": "nowhere"}
    features = {"_target_": "fgm.evaluation.panel.FeaturePanel", "extractor": inception, "reference": "r.npz"}
    with pytest.raises(Refusal, match=r"give evaluator\.panel\.extractor\.weights=<path>"):
        make_evaluation(node | {"panel": features})


@pytest.mark.parametrize("case", ["truncated PNG", "unknown evaluator"])
def test_of_several_ranks_whoever_says_it_says_the_line(
    case: str, run: list[str], exported: Path, tmp_path: Path
) -> None:
    make_arguments, message = EVALUATE[case]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "fgm.evaluate", *make_arguments(run, exported, tmp_path)], capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if re.match(r"error( on rank 1)?: ", line)]  # torchrun may stop
    assert 1 <= len(lines) <= 2 and all(re.search(message, line) for line in lines)  # one before it has spoken
    assert done.returncode and "exitcode  : 2" in done.stderr


EXPORT = {
    "unknown format": (["format=pngs"], "format = pngs: unknown; did you mean png"),
    "no prompts": (
        ["format=geneval"],
        "format = geneval: digits_fgm is no model with prompts; choose format=png or edm",
    ),
    "no number": (["n=0"], "n = 0 must be a whole number from 1"),
    "a file for a folder": (["out=README.md"], "README.md is a file, and a folder is needed"),
    "a place that is taken": (["out={png}"], "is there already, and is not written to: delete it or give another out="),
}


@pytest.mark.parametrize("own, message", EXPORT.values(), ids=EXPORT)
def test_what_cannot_be_exported_is_one_line(
    own: list[str], message: str, run: list[str], exported: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [word.format(png=exported) for word in own]
    assert message in refused(fgm.export.main, [*run, *own], capsys, monkeypatch)


SAMPLE = {
    "no picture": (["out=README.md"], "out = README.md must end with .png, .jpg, .svg, .pdf"),
    "a file for a folder": (["out=README.md/drawn.png"], "README.md is a file, and a folder is needed"),
    "unknown setting": (["m=3"], "there is no setting m; at the root there are data,"),
    "where its own stand": (["m=3"], "the command's own are n, sample_seed, prompt, out"),
}


@pytest.mark.parametrize("own, message", SAMPLE.values(), ids=SAMPLE)
def test_what_cannot_be_drawn_is_one_line(
    own: list[str], message: str, run: list[str], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message in refused(fgm.sample.main, [*run, *own], capsys, monkeypatch)


def test_a_machine_without_the_devices_asked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(Refusal, match=r"trainer.accelerator = gpu: PyTorch finds no GPU here; give trainer.acc"):
        require_device({"accelerator": "gpu", "devices": 1})
    require_device({"accelerator": "auto", "devices": 2})
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(Refusal, match=r"trainer.devices = 2: PyTorch finds 1 here"):
        require_device({"accelerator": "auto", "devices": 2})
    require_device({"accelerator": "cpu", "devices": 2})


def test_points_are_not_exported_and_nan_leaves_nothing(
    run: list[str], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = finished(tmp_path / "points", "mixture_fgm", ["method.generator_start=random"])
    assert "draws points of shape (2,)" in refused(fgm.export.main, points, capsys, monkeypatch)
    broken = [*nan_weights(run, tmp_path), f"out={tmp_path / 'new' / 'png'}"]
    assert "20 of the samples 0 to 19 are not finite" in refused(fgm.export.main, broken, capsys, monkeypatch)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("module, own", [("evaluate", "evaluator=fid"), ("export", "format=jpg")])
def test_a_bad_choice_is_refused_before_torch_is_imported(module: str, own: str, run: list[str]) -> None:
    assert f"{own.replace('=', ' = ')}: unknown" in light(module, [*run, own])


@pytest.mark.parametrize("target", ["eval", "export", "score", "reference"])
def test_make_offers_the_command(target: str) -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert re.search(rf"^{target}: setup ## .+\n\t@\$\(RUN\) fgm\.", makefile, re.M)
