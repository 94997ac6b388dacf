"""GenEval of an SD3 recipe: its prompts are encoded with the others and never trained on, and asked in training."""

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
from fgm.cli.config import read_recipe
from fgm.evaluation.geneval.detections import Detection, Pixels
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
ASKED = example_prompts(2)
TAGS = list(dict.fromkeys(p.tag for p in ASKED))


class SeesNothing:
    """A detector by which no prompt is right."""

    protocol = "blind"

    def __init__(self, directory: str | None = None) -> None:
        del directory

    def detect(self, image: Pixels) -> list[Detection]:
        assert image.shape == (32, 32, 3)
        return []


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("geneval")
    write_prompts(root / "metadata.jsonl", ASKED)
    return root


@pytest.fixture(scope="module")
def asking(root: Path) -> list[str]:
    """Settings of a run that is asked GenEval's prompts, and whose cache is not there yet."""
    given = [s for s in settings_of(root) if not s.startswith("evaluation.")]
    n = len(ASKED)
    return [
        *given, f"data.cache.directory={root / 'asked'}", "evaluation=geneval", "evaluation.every=1",
        f"evaluation.suite.metadata={root / 'metadata.jsonl'}", "evaluation.suite.samples=1", "evaluation.batch=4",
        f"evaluation.suite.detector={{_target_:{__name__}.SeesNothing}}", "evaluation.suite.colors=null",
        f"evaluation.n={n}", "evaluation.n_in_training=6",
    ]  # fmt: skip


def test_the_cache_holds_both_and_training_draws_its_own_alone(asking: list[str]) -> None:
    cache_prompts.main(["experiment=sd3_fgm", *asking, "device=cpu"])
    data = make(read_recipe("sd3_fgm", asking)["data"], "data")
    assert data.index.prompts == ["", *PROMPTS, *(p.prompt for p in ASKED)]
    drawn = data.conditions(200, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(1, 1 + len(PROMPTS)))
    assert data.decode(data.encode([ASKED[3].prompt])) == [ASKED[3].prompt]


def test_a_run_is_asked_a_fixed_beginning_in_training_and_all_at_its_end(asking: list[str], root: Path) -> None:
    train.main(["experiment=sd3_fgm", *asking, f"run_dir={root / 'run'}"])
    rows = list(csv.DictReader((root / "run" / "metrics.csv").read_text().splitlines()))
    curves = {name: [row[name] for row in rows if row[name]] for name in rows[0] if name.startswith("eval/")}
    assert set(curves) == {"eval/geneval", *(f"eval/geneval_{tag}" for tag in TAGS)}
    assert all([float(value) for value in values] == [0.0, 0.0] for values in curves.values())
    results = json.loads((root / "run" / "results.json").read_text())["results"]
    whole = [row for row in results if row["metric"] == "geneval"]
    assert [row["n"] for row in whole] == [len(ASKED)] * 4 and {row["value"] for row in whole} == {0.0}
    assert all("blind" in row["protocol"] and f"{len(ASKED)} prompts" in row["protocol"] for row in whole)


def test_prompts_that_are_not_encoded_are_said_before_anything_is_trained(asking: list[str], root: Path) -> None:
    plain = [s for s in settings_of(root) if not s.startswith(("evaluation.", "data.cache.directory"))]
    plain.append(f"data.cache.directory={root / 'plain'}")
    cache_prompts.main(["experiment=sd3_fgm", *plain, "device=cpu"])
    run = ["experiment=sd3_fgm", *asking, f"data.cache.directory={root / 'plain'}", f"run_dir={root / 'no'}"]
    with pytest.raises(UserError, match=r"other prompts; give data.cache.directory=<another>.*make cache-prompts"):
        train.main(run)
    with pytest.raises(UserError, match=f"{len(ASKED)} prompts are not in .*data.cache.extra_prompts"):
        train.main([*run, "data.cache.extra_prompts=null"])
    assert not (root / "no").exists()
