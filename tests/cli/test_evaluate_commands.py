"""evaluate and export: what they write is read again, and gets the same numbers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import Said, refused, rescale, results_of, run_dir

import fgm.cli.evaluate
import fgm.cli.export
from fgm.data.geneval import read_prompts
from fgm.data.pixels import dequantise
from fgm.data.shapes.captions import VOCABULARY, all_captions, decode
from fgm.data.shapes.dataset import Shapes
from fgm.evaluation.feature_metrics import DISTANCES
from fgm.evaluation.geneval.folder import read_layout
from fgm.evaluation.sampling import Sampler
from fgm.evaluation.sources import FolderSource, SamplerSource
from fgm.utils.records import Measurement


def ema(results: dict, weights: str = "ema") -> list[tuple[str, float, int]]:
    return [(r["metric"], r["value"], r["n"]) for r in results["results"] if r["weights"] == weights]


def test_folder_of_exported_samples_gets_the_numbers_of_the_run(
    digits_run: list[str], digits_png: Path, tmp_path: Path, capsys: Said
) -> None:
    fgm.cli.evaluate.main([*digits_run])
    memory = results_of(capsys.readouterr().out)
    fgm.cli.evaluate.main([f"samples_dir={digits_png}", "evaluator=digits", "n=60", f"outputs={tmp_path}"])
    folder = results_of(capsys.readouterr().out)
    assert ema(memory) == ema(folder, "folder")
    bands = ["power_low", "power_mid", "power_high"]
    assert [name for name, *_ in ema(memory)] == [*DISTANCES, "accuracy", "class_tv", "diversity", *bands]


def test_evaluation_has_provenance_and_can_be_repeated(digits_run: list[str], capsys: Said) -> None:
    first, again = (
        results_of((fgm.cli.evaluate.main([*digits_run, "n=40", "eval_seed=7"]), capsys.readouterr().out)[1])
        for _ in range(2)
    )
    assert again["results"] == first["results"] and again["key"] == first["key"]
    source = first["evaluation"]["source"]
    assert source["seed"] == 7 and first["evaluation"]["n"] == 40 and source["nfe"] == 1
    assert len(source["weights_sha256"]) == 64 and first["env"]["world_size"] == 1
    assert first["evaluation"]["suite"]["extractor"]["id"] == "small-classifier"
    assert all(r["protocol"] and r["n"] for r in first["results"])


def test_repeats_report_mean_spread_and_minimum_over_seeds(digits_run: list[str], capsys: Said) -> None:
    fgm.cli.evaluate.main([*digits_run, "n=40", "eval_seed=3", "repeats=2"])
    paths = re.findall(r"provenance: (.*results\.json)", capsys.readouterr().out)
    one, both = (json.loads(Path(path).read_text()) for path in paths)
    first, second = ({m: v for m, v, _ in ema(told)} for told in (one, {"results": both["results"][:12]}))
    assert first["fd"] != second["fd"] and both["evaluation"]["source"]["seed"] == 4
    over = next(r for r in both["results"] if r["protocol"].startswith("mean of 2 seeds of samples; small-classifier"))
    assert (
        over["metric"] == "fd" and over["values"] == [first["fd"], second["fd"]] and over["min"] == min(over["values"])
    )
    assert over["value"] == pytest.approx(sum(over["values"]) / 2) and over["sd"] > 0 and over["n"] == 40


def test_metric_that_only_some_seeds_have_is_not_averaged() -> None:
    """Crispness is of objects, and the samples of one seed may show none."""
    told = [
        [Measurement("crispness", 0.9, 5, "p"), Measurement("stray", 0.1, 5, "p")],
        [Measurement("stray", 0.3, 5, "p")],
    ]
    assert [(m.metric, m.value) for m in fgm.cli.evaluate.spread(told)] == [("stray", pytest.approx(0.2))]


def test_other_weights_have_another_key(digits_run: list[str], tmp_path: Path, capsys: Said) -> None:
    shutil.copytree(run_dir(digits_run), tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    keys = set()
    for scale in (1.0, 0.5):
        rescale(tmp_path / "run", scale)
        fgm.cli.evaluate.main([*digits_run, f"run_dir={tmp_path / 'run'}", "n=40"])
        keys.add(results_of(capsys.readouterr().out)["key"])
    assert len(keys) == 2 and len(list((tmp_path / "run" / "evaluation").iterdir())) == 2


def test_exported_layouts_hold_the_same_images(digits_run: list[str], digits_png: Path, tmp_path: Path) -> None:
    fgm.cli.export.main([*digits_run, "format=edm", "n=60", f"out={tmp_path / 'edm'}"])
    flat, edm = FolderSource(digits_png), FolderSource(tmp_path / "edm", recursive=True)
    assert flat.describe() == edm.describe() and flat.n == 60 and flat.shape == (1, 8, 8)
    assert (tmp_path / "edm" / "00000" / "img00000059.png").exists()
    assert flat.labels is not None and flat.labels.tolist() == [i % 10 for i in range(60)]
    fgm.cli.export.main([*digits_run, "n=20", "eval_seed=5"])
    assert FolderSource(run_dir(digits_run) / "export" / "png").describe() != FolderSource(digits_png, n=20).describe()


class Echo(torch.nn.Module):
    """Draws the first words of its prompt as pixels."""

    def forward(self, z: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return dequantise(tokens.to(torch.uint8)).view(-1, 1, 3, 4).expand(-1, 3, -1, -1)


def test_geneval_export_puts_samples_into_the_folders_of_their_prompts(
    digits_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def echo(config: dict, evaluation: Any, data: Shapes, n: int, seed: int, device: torch.device) -> SamplerSource:
        return evaluation.source(Sampler("echo", Echo(), 1, "ema"), data, device, n, seed)

    make = fgm.cli.export.make
    monkeypatch.setattr(fgm.cli.export, "make", lambda node, what: Shapes() if what == "data" else make(node, what))
    monkeypatch.setattr(fgm.cli.export, "sampler_source", echo)
    asked = [*digits_run, "format=geneval", "samples=3", "vocabulary=shapes", f"out={tmp_path / 'layout'}"]
    lines = all_captions("color_attr")[::17].metadata()
    (tmp_path / "prompts.jsonl").write_text("".join(metadata.line() + "\n" for metadata in lines))
    fgm.cli.export.main([*asked, f"metadata={tmp_path / 'prompts.jsonl'}"])
    layout = read_layout(tmp_path / "layout", read_prompts(tmp_path / "prompts.jsonl", VOCABULARY), per_prompt=3)
    tokens = np.stack([sample.pixels()[..., 0].ravel() for sample in layout])
    assert decode(torch.tensor(tokens).long()) == [metadata.prompt for metadata in lines for _ in range(3)]
    assert "n follows from the prompts" in refused(
        fgm.cli.export.main, [*asked[:-1], "metadata=x", "n=5"], capsys, monkeypatch
    )
