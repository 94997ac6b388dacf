"""Recipes with several steps, guidance in both networks and adapters: trained, measured and drawn from by name."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fgm.cli import train
from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.cli.loading import load_source
from fgm.cli.runs import finished
from fgm.evaluation.sampling import Sampler, balanced, draw_samples
from fgm.training.checkpointing import LAST
from fgm.utils.errors import UserError

TINY = [
    "training.max_steps=3", "training.batch_size=8", "training.log_every_n_steps=1", "evaluation.every=2", "evaluation.n=40",
    "evaluation.n_in_training=40", "method.teacher_steps=2", "logger=csv",
    'teacher.overrides=["training.max_steps=2","training.batch_size=8","evaluation.n=40"]',
]  # fmt: skip
VARIANTS = {
    "two steps": ["method.steps=2"],
    "two-stage": ["method.low_memory=true"],
    "adapters": [
        "method=fgm_lora", "method.adapters.targets=[qkv,out,head]", "method.adapters.rank=2", "method.steps=2",
        "method.guidance=long_and_short", "teacher.guidance=2.0",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One teacher for all variants."""
    root = tmp_path_factory.mktemp("variants")
    return [f"outputs={root}/outputs", f"experiments={root}/experiments"]


def drawn(source: Sampler) -> torch.Tensor:
    return draw_samples(source, 1, 8, (1, 8, 8), balanced(10).conditions, torch.device("cpu"))[0]


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_trains_and_its_finished_run_draws_what_its_average_draws(
    overrides: list[str], places: list[str]
) -> None:
    arguments = ["experiment=digits_fgm", *TINY, *overrides, *places]
    train.main(arguments)
    config = finished(read_recipe("digits_fgm", arguments[1:]))
    run_dir, nfe = Path(config["run_dir"]), config["method"]["steps"]
    source = load_source(config)
    assert source.nfe == nfe
    measured = json.loads((run_dir / "results.json").read_text())["results"]
    assert {row["nfe"] for row in measured if row["weights"] in ("ema", "raw")} == {nfe}
    module, _ = build(config, Console(quiet=True))
    module.load_state_dict(torch.load(run_dir / LAST, weights_only=True)["state_dict"])
    assert torch.equal(drawn(source), drawn(module.sources()[0]))
    assert not torch.equal(drawn(source), drawn(module.sources()[2]))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["method.steps=0"], "method.steps = 0: must lie in"),
        (["method.guidance=short"], "must be one of none, teacher, long_and_short"),
        (["method=fgm_lora", "method.adapters.rank=0"], "method.adapters.rank = 0: must lie in"),
        (["method=fgm_lora", "method.adapters.base=float16"], "must be one of float32, bfloat16"),
    ],
)
def test_a_bad_variant_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe("digits_fgm", overrides)


def test_what_only_the_teacher_can_tell_is_refused_too(places: list[str]) -> None:
    with pytest.raises(UserError, match="match no linear layer of DiT"):
        train.main(["experiment=digits_fgm", *TINY, "method=fgm_lora", *places])
