"""evaluate, export, score, reference: what they write is read again, bad input is one line and exit code 2."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fgm.evaluate
import fgm.export
import fgm.reference
import fgm.score
from fgm.config import read_recipe, write_yaml
from fgm.data.digits import Digits
from fgm.data.shapes.render import render
from fgm.data.shapes.scenes import draw_scenes
from fgm.errors import entry
from fgm.evaluation.geneval.grammar import generate_prompts
from fgm.evaluation.geneval.layout import write_layout
from fgm.evaluation.geneval.prompts import write_prompts
from fgm.evaluation.images import DigitPanel
from fgm.evaluation.sources.folder import FolderSource
from fgm.streams import stream

TINY = [
    "method.generator_start=random",
    "evaluation.n=60",
    "evaluation.batch=20",
    "network.width=16",
    "network.depth=1",
]
PROMPTS = generate_prompts(seed=2)[::60]
Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def run(home: Path) -> list[str]:
    """The arguments that name a finished run of random weights."""
    return finished(home / "outputs", "digits_fgm", TINY)


def finished(outputs: Path, recipe: str, overrides: list[str]) -> list[str]:
    from hydra.utils import instantiate

    arguments = [f"experiment={recipe}", *overrides, f"outputs={outputs}"]
    config = read_recipe(recipe, arguments[1:])
    run_dir = Path(config["run_dir"])
    run_dir.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = instantiate(config["network"]).state_dict()
    save_file(weights, run_dir / "generator.safetensors")
    write_yaml(config, run_dir / "config.yaml")
    (run_dir / "results.json").write_text("{}")
    return arguments


def run_dir(run: list[str]) -> Path:
    return Path(read_recipe("digits_fgm", run[1:])["run_dir"])


@pytest.fixture(scope="module")
def exported(run: list[str], home: Path) -> Path:
    fgm.export.main([*run, "format=png", f"out={home / 'png'}"])
    return home / "png"


def results_of(said: str) -> dict:
    return json.loads(Path(re.findall(r"provenance: (.*results\.json)", said)[-1]).read_text())


def ema(results: dict, weights: str = "ema") -> list[tuple[str, float, int]]:
    return [(r["metric"], r["value"], r["n"]) for r in results["results"] if r["weights"] == weights]


def test_a_folder_of_a_runs_samples_gets_the_runs_numbers(
    run: list[str], exported: Path, tmp_path: Path, capsys: Said
) -> None:
    fgm.evaluate.main([*run, "shard_size=20"])
    memory = results_of(capsys.readouterr().out)
    fgm.evaluate.main([f"samples_dir={exported}", "evaluator=digits", "n=60", "shard_size=20", f"outputs={tmp_path}"])
    folder = results_of(capsys.readouterr().out)
    assert ema(memory) == ema(folder, "folder") and [name for name, *_ in ema(memory)] == ["fd", "accuracy"]
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
    assert "small-classifier-" in first["evaluation"]["panel"]["protocol"]
    assert all(r["protocol"] and r["n"] for r in first["results"])


def test_other_weights_are_another_evaluation(run: list[str], tmp_path: Path, capsys: Said) -> None:
    shutil.copytree(run_dir(run), tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    keys = set()
    for scale in (1.0, 0.5):
        rescale(tmp_path / "run", scale)
        fgm.evaluate.main([*run, f"run_dir={tmp_path / 'run'}", "n=40"])
        keys.add(results_of(capsys.readouterr().out)["key"])
    assert len(keys) == 2 and len(list((tmp_path / "run" / "evaluation").iterdir())) == 2


def rescale(directory: Path, scale: float) -> None:
    weights = load_file(directory / "generator.safetensors")
    save_file({name: w * scale for name, w in weights.items()}, directory / "generator.safetensors")


def test_exports_are_read_again(run: list[str], exported: Path, home: Path) -> None:
    fgm.export.main([*run, "format=edm", "n=60", f"out={home / 'edm'}"])
    flat, edm = FolderSource(exported), FolderSource(home / "edm", recursive=True)
    assert flat.describe() == edm.describe() and flat.n == 60 and flat.shape == (1, 8, 8)
    assert (home / "edm" / "00000" / "img00000059.png").exists()
    assert flat.labels is not None and flat.labels.tolist() == [i % 10 for i in range(60)]
    fgm.export.main([*run, "n=20", "eval_seed=5"])
    assert FolderSource(run_dir(run) / "export" / "png").describe() != FolderSource(exported, n=20).describe()


def test_a_reference_holds_the_moments_of_the_panel(tmp_path: Path, capsys: Said) -> None:
    fgm.reference.main(["data=digits", f"out={tmp_path / 'refs.npz'}"])
    with np.load(tmp_path / "refs.npz") as moments:
        assert set(moments) == {"mu", "sigma", "n"} and moments["n"] == len(Digits().split["train"][0])
        expected = DigitPanel().reference
        np.testing.assert_allclose(moments["mu"], expected.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(moments["sigma"], expected.covariance.numpy(), atol=1e-5)
    assert "mu and sigma of 1433 images, 32 features of digits" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["refs.npz"]


def test_a_reference_of_a_folder_is_that_of_its_images(exported: Path, tmp_path: Path) -> None:
    fgm.reference.main([f"samples_dir={exported}", "n=50", f"out={tmp_path / 'refs.npz'}"])
    with np.load(tmp_path / "refs.npz") as moments:
        features = DigitPanel().rows(FolderSource(exported).take(range(50)).x_0(), None)["features"].double().numpy()
        np.testing.assert_allclose(moments["mu"], features.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments["sigma"], np.cov(features, rowvar=False), atol=1e-10)


@pytest.fixture
def geneval(tmp_path: Path) -> list[str]:
    """Pictures of which the first sample of every prompt shows what was asked for, and the second nothing."""
    write_layout(tmp_path / "layout", PROMPTS, lambda i, k: np.full((8, 8, 3), 9, np.uint8), per_prompt=2)
    write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    seen = {f"{i:05d}/samples/{k:05d}.png": [] if k else entries(i) for i in range(len(PROMPTS)) for k in (0, 1)}
    (tmp_path / "seen.json").write_text(json.dumps(seen))
    return [
        f"geneval_dir={tmp_path / 'layout'}", f"metadata={tmp_path / 'prompts.jsonl'}",
        f"detections={tmp_path / 'seen.json'}", "samples=2",
    ]  # fmt: skip


def entries(index: int) -> list[dict]:
    shifts = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}
    found = []
    for clause in PROMPTS[index].include:
        dx, dy = shifts[clause.position[0]] if clause.position else (0, 0)
        box = [40 + dx, 40 + dy, 50 + dx, 50 + dy]
        found += [{"class": clause.cls, "box": box, "score": 0.95, "color": clause.colour or "red"}] * clause.count
    return found


def test_a_layout_is_scored_from_detections(geneval: list[str], tmp_path: Path, capsys: Said) -> None:
    fgm.score.main(geneval)
    said = capsys.readouterr().out
    assert "geneval 0.5000" in said and "prompts 1.0000" in said and "detections from seen.json" in said
    (row,) = json.loads((tmp_path / "layout" / "score" / "results.json").read_text())["results"]
    assert (row["value"], row["n"], row["weights"]) == (0.5, 2 * len(PROMPTS), "folder") and row["low"] <= 0.5
    verdicts = (tmp_path / "layout" / "score" / "results.jsonl").read_text().splitlines()
    assert len(verdicts) == 2 * len(PROMPTS)


def test_shapes_are_scored_by_their_exact_detector(tmp_path: Path, capsys: Said) -> None:
    from fgm.data.shapes.metadata import metadata

    scenes = draw_scenes(12, stream("score", index=0), 32, 4)
    lines = metadata(scenes.captions)
    chosen = list({line["prompt"]: i for i, line in enumerate(lines)}.values())
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(lines[i]) + "\n" for i in chosen))
    images = ((render(scenes, 32) + 1) * 127.5).round().to(torch.uint8)
    for index, i in enumerate(chosen):
        folder = tmp_path / "layout" / f"{index:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps(lines[i]))
        Image.fromarray(images[i].movedim(0, -1).numpy()).save(folder / "samples" / "00000.png")
    fgm.score.main(
        [f"geneval_dir={tmp_path}/layout", f"metadata={tmp_path}/prompts.jsonl"]
        + ["samples=1", "detector=shapes", "vocabulary=shapes"]
    )
    assert "shapeeval 1.0000" in capsys.readouterr().out


def nan_weights(run: list[str], tmp_path: Path) -> list[str]:
    shutil.copytree(run_dir(run), tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "export"))
    rescale(tmp_path / "run", float("nan"))
    return [*run, f"run_dir={tmp_path / 'run'}"]


def folder_with(exported: Path, tmp_path: Path, mode: str = "L", size: tuple[int, int] = (8, 8)) -> list[str]:
    shutil.copytree(exported, tmp_path / "in")
    Image.new(mode, size).save(tmp_path / "in" / "000007.png")
    return [f"samples_dir={tmp_path / 'in'}", "evaluator=digits", f"outputs={tmp_path / 'out'}"]


def truncated(exported: Path, tmp_path: Path) -> list[str]:
    arguments, file = folder_with(exported, tmp_path), tmp_path / "in" / "000007.png"
    file.write_bytes(file.read_bytes()[:-5])
    return arguments


def unknown_class(geneval: list[str], tmp_path: Path) -> list[str]:
    path = tmp_path / "seen.json"
    path.write_text(path.read_text().replace(f'"class": "{PROMPTS[0].include[0].cls}"', '"class": "unicorn"', 1))
    return geneval


Case = Callable[[list[str], Path, Path], list[str]]
EVALUATE: dict[str, tuple[Case, str]] = {
    "truncated PNG": (lambda run, png, tmp: truncated(png, tmp), r"000007\.png: is no whole PNG \(truncated\)"),
    "mixed sizes": (lambda run, png, tmp: folder_with(png, tmp, size=(9, 9)), r"000007\.png: is grey 9 x 9, and 0000"),
    "RGB among grey": (lambda run, png, tmp: folder_with(png, tmp, "RGB"), r"000007\.png: is RGB 8 x 8, and 000000"),
    "RGBA": (lambda run, png, tmp: folder_with(png, tmp, "RGBA"), r"000007\.png: is RGBA, and only"),
    "fewer than promised": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=digits", "n=61"],
        "holds 60 PNGs, and n = 61 are promised",
    ),
    "too few to measure": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=digits", "n=20", f"outputs={tmp}/out"],
        "20 samples cannot fill a covariance of 32 features",
    ),
    "NaN samples": (lambda run, png, tmp: nan_weights(run, tmp), "60 of the samples 0 to 59 are not finite, number 0"),
    "unknown evaluator": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=digit"],
        "evaluator = digit: unknown; did you mean digits",
    ),
    "unknown evaluator of a run": (lambda run, png, tmp: [*run, "evaluator=fid"], "evaluator = fid: unknown; there"),
    "evaluator of points": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluator=points"],
        "this evaluator measures points, and Digits holds images",
    ),
    "no evaluator": (lambda run, png, tmp: [f"samples_dir={png}"], "evaluator= is missing"),
    "no folder": (lambda run, png, tmp: [f"samples_dir={png}x", "evaluator=digits"], "is no folder"),
    "unknown setting": (
        lambda run, png, tmp: [f"samples_dir={png}", "evaluater=digits"],
        "there is no setting evaluater; did you mean evaluator",
    ),
    "no number": (lambda run, png, tmp: [*run, "n=many"], "n = many must be a whole number from 1"),
    "a cut batch": (lambda run, png, tmp: [*run, "shard_size=30"], "must be a multiple of the evaluator's batch, 20"),
    "no finished run": (lambda run, png, tmp: [*run, "seed=9"], "holds no finished run: make train EXP=digits_fgm"),
}  # fmt: skip


def refused(
    main: Callable[[list[str]], None], arguments: list[str], said: Said, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The line on stderr of a command that ends with exit code 2."""
    said.readouterr()
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        entry(main)
    line = said.readouterr().err
    assert stop.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    return line


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
    assert not list(tmp_path.glob("**/evaluation/*/results.json"))


EXPORT = {
    "unknown format": (["format=pngs"], "format = pngs: unknown; did you mean png"),
    "no prompts": (
        ["format=geneval"],
        "format = geneval: digits_fgm is no model with prompts; choose format=png or edm",
    ),
    "no number": (["n=0"], "n = 0 must be a whole number from 1"),
    "a place that is taken": (["out={png}"], "is there already, and is not written to: delete it or give another out="),
}


@pytest.mark.parametrize("own, message", EXPORT.values(), ids=EXPORT)
def test_what_cannot_be_exported_is_one_line(
    own: list[str], message: str, run: list[str], exported: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [word.format(png=exported) for word in own]
    assert message in refused(fgm.export.main, [*run, *own], capsys, monkeypatch)


def test_points_are_not_exported_and_nan_leaves_nothing(
    run: list[str], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = finished(tmp_path / "points", "mixture_fgm", ["method.generator_start=random"])
    assert "draws points of shape (2,)" in refused(fgm.export.main, points, capsys, monkeypatch)
    broken = [*nan_weights(run, tmp_path), f"out={tmp_path / 'new' / 'png'}"]
    assert "20 of the samples 0 to 19 are not finite" in refused(fgm.export.main, broken, capsys, monkeypatch)
    assert list((tmp_path / "new").iterdir()) == []


def test_an_unknown_class_in_the_detections_is_one_line_without_torch(geneval: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fgm.score", *unknown_class(geneval, tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and len(said) == 1
    assert "unknown class 'unicorn'; see fgm.evaluation.geneval.vocabulary" in said[0] and "seen.json" in said[0]
    assert not re.search(r"\| +torch$", done.stderr, re.M) and not (tmp_path / "layout" / "score").exists()


SCORE = {
    "no metadata": (lambda a: [x for x in a if "metadata" not in x], "metadata= is missing"),
    "no detections": (lambda a: [x for x in a if "detections" not in x], "detections= is missing"),
    "unknown detector": (
        lambda a: [*a, "detector=yolo"],
        "detector = yolo: unknown; there are json, mask2former, shapes",
    ),
    "no weights": (lambda a: [*a, "detector=mask2former"], "detector_dir= is missing"),
    "too few samples": (lambda a: [*a, "samples=3"], "of 30 samples are missing"),
    "no folder": (lambda a: [*a, "geneval_dir=/no/where"], "geneval_dir = /no/where is no folder"),
}


@pytest.mark.parametrize("case, message", SCORE.values(), ids=SCORE)
def test_what_cannot_be_scored_is_one_line(
    case: Callable[[list[str]], list[str]], message: str, geneval: list[str], tmp_path: Path, capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert message in refused(fgm.score.main, case(geneval), capsys, monkeypatch)
    assert not (tmp_path / "layout" / "score").exists()


REFERENCE = {
    "unknown data": (["data=digit"], "data = digit: unknown; did you mean digits"),
    "points": (["data=ring"], "data = ring: holds points of shape (2,), not images"),
    "unknown split": (["data=digits", "split=validation"], "split = validation: digits has train, test"),
    "neither": ([], "give data=<name> or samples_dir=<folder>"),
    "too many": (["data=digits", "n=5000"], "holds 1433 images, and n = 5000 are promised"),
    "no npz": (["data=digits", "out=refs.npy"], "must end with .npz"),
}


@pytest.mark.parametrize("own, message", REFERENCE.values(), ids=REFERENCE)
def test_what_is_no_reference_is_one_line(
    own: list[str], message: str, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"out={tmp_path / 'refs.npz'}", *own]
    assert message in refused(fgm.reference.main, arguments, capsys, monkeypatch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["eval", "export", "score", "reference"])
def test_make_offers_the_command(target: str) -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert re.search(rf"^{target}: setup ## .+\n\t@\$\(RUN\) fgm\.", makefile, re.M)
