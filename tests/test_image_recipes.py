"""The image recipes: at full size on the meta device, and for two cycles on small files in the official formats."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from official_files import write_cifar10, write_fashion, write_zip
from published_files import guided_state, write_edm
from rich.console import Console

from fgm.build import build
from fgm.config import read_recipe
from fgm.networks.edm import ARCHITECTURES
from fgm.networks.edm_unets import SongUNet
from fgm.training.evaluation import final_measurements
from fgm.training.fit import fit

FULL = {
    "fashion_teacher": 1_265_296, "fashion_fgm": 1_265_296, "cifar10_teacher": 35_746_307, "cifar10_fgm": 35_746_307,
    "cifar10_fgm_exact": 35_746_307, "cifar10_realdata_fgm": 35_746_307, "cifar10_edm_fgm": 55_732_739,
    "cifar10_cond_fgm": 55_734_147, "imagenet64_edm_fgm": 295_899_267,
}  # fmt: skip
EDM = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [16]}
UNET = ["width=8", "multipliers=[1,2]", "blocks=1", "head=8"]


@pytest.mark.parametrize("recipe", FULL)
def test_a_recipes_network_has_its_full_size(recipe: str) -> None:
    with torch.device("meta"):
        net = instantiate(read_recipe(recipe, [])["network"])
    assert sum(p.numel() for p in net.parameters()) == FULL[recipe]


def edm_file(tmp: Path, size: int, classes: int) -> list[str]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SongUNet(size, 3, 3, classes, **EDM)  # type: ignore[arg-type]
    told = {"img_resolution": size, "img_channels": 3, "label_dim": classes, "model_type": "SongUNet", **EDM}
    write_edm(tmp / "edm.pkl", model, **told)
    return [f"teacher.checkpoint={tmp / 'edm.pkl'}", "training.batch_size=2"]


def cifar10(tmp: Path, *more: str) -> list[str]:
    write_cifar10(tmp)
    return [f"data.directory={tmp}", *more]


def imagenet64(tmp: Path, *more: str) -> list[str]:
    write_zip(tmp / "i.zip")
    return [f"data.path={tmp / 'i.zip'}", *more]


def torchcfm_file(tmp: Path) -> list[str]:
    torch.save({"ema_model": guided_state(8, (1, 2), 1, (16,), 32)}, tmp / "cfm.pt")
    sizes = [f"+network.net.{s}" for s in UNET] + [f"+teacher.network.{s}" for s in UNET]
    return cifar10(
        tmp, f"teacher.checkpoint={tmp / 'cfm.pt'}", *sizes, "training.batch_size=2", "method.online_turns=2"
    )


def fashion(tmp: Path, *more: str) -> list[str]:
    write_fashion(tmp, n=80)
    return [f"data.directory={tmp}", "network.width=16", "network.depth=1", "evaluation.n=70", *more]


SMALL: dict[str, Any] = {
    "fashion_teacher": fashion,
    "fashion_fgm": lambda tmp: fashion(tmp, "method.generator_start=random", "method.online_start=random"),
    "cifar10_teacher": lambda tmp: cifar10(tmp, *(f"network.{s}" for s in UNET), "training.batch_size=2"),
    "cifar10_fgm": lambda tmp: cifar10(tmp, *(f"network.{s}" for s in UNET), "training.batch_size=2"),
    "cifar10_fgm_exact": torchcfm_file,
    "cifar10_realdata_fgm": torchcfm_file,
    "cifar10_edm_fgm": lambda tmp: cifar10(tmp, *edm_file(tmp, 32, 0)),
    "cifar10_cond_fgm": lambda tmp: cifar10(tmp, *edm_file(tmp, 32, 10)),
    "imagenet64_edm_fgm": lambda tmp: imagenet64(tmp, *edm_file(tmp, 64, 1000)),
}  # fmt: skip


@pytest.mark.parametrize("recipe", SMALL)
def test_a_recipe_runs_on_the_official_formats(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cycles: weights move, stay finite, and no update is left out."""
    module, run = built(recipe, tmp_path, monkeypatch)
    before = {name: weight.clone() for name, weight in module.result().state_dict().items()}
    fit(module, run)
    after = module.result().state_dict()
    assert int(module.cycle) == 2 and all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(descent.skipped == 0 for descent in getattr(module, "descents", []))


def test_a_recipe_resumes_and_is_measured_under_edms_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after one cycle it ends, to the bit, where it ends in one go; at another n than EDM's, fd is no fid."""
    whole, run = built("cifar10_edm_fgm", tmp_path, monkeypatch, "run_dir=${outputs}/whole")
    fit(whole, run)
    stopped, run = built("cifar10_edm_fgm", tmp_path, monkeypatch, "run_dir=${outputs}/parts", "training.save_every=1")
    monkeypatch.setattr(type(stopped), "training_step", interrupted(type(stopped).training_step))
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, run)
    monkeypatch.undo()
    resumed, run = built("cifar10_edm_fgm", tmp_path, monkeypatch, "run_dir=${outputs}/parts", "training.save_every=1")
    fit(resumed, run)
    for name, weight in whole.result().state_dict().items():
        assert torch.equal(weight, resumed.result().state_dict()[name]), name
    told = {(m.metric, m.weights): m.protocol for m in final_measurements(run.measuring, resumed, [])}
    assert told["fd", "ema"].startswith("edm but for n = 50000") and ("fid", "ema") not in told


def interrupted(step: Any) -> Any:
    def second_fails(module: Any, batch: Any) -> None:
        if int(module.cycle) == 1:
            raise KeyboardInterrupt
        step(module, batch)

    return second_fails


def built(recipe: str, tmp: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[Any, Any]:
    """The recipe on small files and a small network, for two cycles, measured in random features."""
    network = read_recipe(recipe, [])["network"]
    if "architecture" in network:
        size = 64 if "64" in recipe else 32
        monkeypatch.setitem(ARCHITECTURES, network["architecture"], (SongUNet, size, EDM))
    panel = ["evaluation=random_features", "evaluation.n=40", "evaluation.panel.metrics=[fd]",
             "+evaluation.panel.protocol=edm", "method.teacher_steps=2"]  # fmt: skip
    quick = ["training.cycles=2", "training.warmup=0", "evaluation.every=0", "trainer.accelerator=cpu", "logger=csv",
             "trainer.precision=32-true", f"outputs={tmp}", f"experiments={tmp / 'e'}"]  # fmt: skip
    panel = [] if recipe.startswith("fashion") else panel[: 4 if recipe.endswith("teacher") else 5]
    config = read_recipe(recipe, [*panel, *SMALL[recipe](tmp), *quick, *more])
    if "recipe" in (config["teacher"] or {}):
        config["teacher"] = config["network"]
    module, run = build(config, Console(quiet=True))
    run.run_dir.mkdir(parents=True, exist_ok=True)
    return module, run
