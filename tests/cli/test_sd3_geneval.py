"""GenEval of an SD3 experiment: its prompts are encoded, never trained on, and scored during and after training."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from geneval_files import example_prompts, write_prompts
from sd3_runs import PROMPTS, settings_of

from fgm.cli import cache_prompts, train
from fgm.cli.checks import make
from fgm.cli.config import compose_experiment
from fgm.evaluation.geneval.rules import Detection, Pixels
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
EVALUATED = example_prompts(2)
TAGS = list(dict.fromkeys(p.tag for p in EVALUATED))


class SeesNothing:
    """A detector that never detects anything."""

    protocol = "blind"

    def __init__(self, directory: str | None = None) -> None:
        del directory

    def detect(self, image: Pixels) -> list[Detection]:
        assert image.shape == (32, 32, 3)
        return []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("geneval")
    write_prompts(root / "metadata.jsonl", EVALUATED)
    return root


@pytest.fixture(scope="module")
def overrides(root: Path) -> list[str]:
    """Overrides of a run that is evaluated by GenEval; its cache is not yet written."""
    given = [s for s in settings_of(root) if not s.startswith("evaluation.")]
    n = len(EVALUATED)
    return [
        *given, f"data.cache.directory={root / 'cache'}", "evaluation=geneval", "evaluation.every=1",
        f"evaluation.suite.metadata={root / 'metadata.jsonl'}", "evaluation.suite.samples=1", "evaluation.batch=4",
        f"evaluation.suite.detector={{_target_:{__name__}.SeesNothing}}", "evaluation.suite.colors=null",
        f"evaluation.n={n}", "evaluation.n_in_training=6",
    ]  # fmt: skip


def test_cache_has_all_prompts_and_training_draws_only_its_own(overrides: list[str]) -> None:
    cache_prompts.main(["experiment=sd3_fgm", *overrides, "device=cpu"])
    data = make(compose_experiment("sd3_fgm", overrides)["data"], "data")
    assert data.index.prompts == ["", *PROMPTS, *(p.prompt for p in EVALUATED)]
    drawn = data.conditions(200, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(1, 1 + len(PROMPTS)))
    assert data.decode(data.encode([EVALUATED[3].prompt])) == [EVALUATED[3].prompt]


def test_run_is_scored_in_training_and_on_all_prompts_at_its_end(overrides: list[str], root: Path) -> None:
    train.main(["experiment=sd3_fgm", *overrides, f"run_dir={root / 'run'}"])
    rows = list(csv.DictReader((root / "run" / "metrics.csv").read_text().splitlines()))
    curves = {name: [row[name] for row in rows if row[name]] for name in rows[0] if name.startswith("eval/")}
    assert set(curves) == {"eval/geneval", *(f"eval/geneval_{tag}" for tag in TAGS)}
    assert all([float(value) for value in values] == [0.0, 0.0] for values in curves.values())
    results = json.loads((root / "run" / "results.json").read_text())["results"]
    scores = [row for row in results if row["metric"] == "geneval"]
    assert [row["n"] for row in scores] == [len(EVALUATED)] * 4 and {row["value"] for row in scores} == {0.0}
    assert all("blind" in row["protocol"] and f"{len(EVALUATED)} prompts" in row["protocol"] for row in scores)


def test_prompts_without_encodings_are_an_error_before_training(overrides: list[str], root: Path) -> None:
    plain = [s for s in settings_of(root) if not s.startswith(("evaluation.", "data.cache.directory"))]
    plain.append(f"data.cache.directory={root / 'plain'}")
    cache_prompts.main(["experiment=sd3_fgm", *plain, "device=cpu"])
    run = ["experiment=sd3_fgm", *overrides, f"data.cache.directory={root / 'plain'}", f"run_dir={root / 'no'}"]
    with pytest.raises(UserError, match=r"other prompts; give data.cache.directory=<another>.*make cache-prompts"):
        train.main(run)
    with pytest.raises(UserError, match=f"{len(EVALUATED)} prompts are not in .*data.cache.extra_prompts"):
        train.main([*run, "data.cache.extra_prompts=null"])
    assert not (root / "no").exists()
