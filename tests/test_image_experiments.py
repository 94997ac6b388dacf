"""The image experiments: at full size on the meta device, and for two steps on small files in the official formats."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from official_files import write_cifar10, write_fashion, write_zip
from published_files import guided_state, write_edm, write_edm2
from rich.console import Console
from score_sde import modules, state_of, write_rectified_flow
from toy_trainings import same_bits, whole_and_cut

from fgm.cli.build import build, build_module
from fgm.cli.config import compose_experiment, experiment_names
from fgm.cli.memory import untrained
from fgm.teachers.edm import ARCHITECTURES
from fgm.teachers.edm2 import EDM2UNet
from fgm.teachers.edm_networks import SongUNet
from fgm.training.trainer import fit

FULL = {
    "fashion_teacher": 1_265_296, "fashion_fgm": 1_265_296, "fashion_sid": 1_265_296,
    "cifar10_teacher": 35_746_307, "cifar10_fgm": 35_746_307, "cifar10_fgm_exact": 35_746_307,
    "cifar10_realdata_fgm": 35_746_307, "cifar10_fgm_gan": 35_746_307, "cifar10_edm_fgm": 55_732_739,
    "cifar10_cond_fgm": 55_734_147, "imagenet64_edm_fgm": 295_899_267,
}  # fmt: skip
EDM = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [16]}
EDM2 = EDM | {"channels_per_head": 8}
UNET = ["width=8", "multipliers=[1,2]", "blocks=1", "head=8"]


@pytest.mark.parametrize("experiment", FULL)
def test_a_recipes_network_has_its_full_size(experiment: str) -> None:
    with torch.device("meta"):
        net = instantiate(compose_experiment(experiment, [])["network"])
    assert sum(p.numel() for p in net.parameters()) == FULL[experiment]


def test_every_image_recipe_is_counted() -> None:
    assert {name for name in experiment_names() if name.startswith(("fashion", "cifar10", "imagenet64"))} == set(FULL)


def edm_file(tmp: Path, size: int, classes: int, edm2: bool = False) -> list[str]:
    kind, options = (EDM2UNet, EDM2) if edm2 else (SongUNet, EDM)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(size, 3, 3, classes, **options)  # type: ignore[arg-type]
    told = {"img_resolution": size, "img_channels": 3, "label_dim": classes, **options}
    if edm2:
        write_edm2(tmp / "edm.pkl", model, **told)
    else:
        write_edm(tmp / "edm.pkl", model, **told, model_type="SongUNet")
    return [f"teacher.checkpoint={tmp / 'edm.pkl'}", "training.batch_size=2"]


def cifar10(tmp: Path, *more: str) -> list[str]:
    write_cifar10(tmp)
    return [f"data.directory={tmp}", *more]


def imagenet64(tmp: Path, *more: str) -> list[str]:
    write_zip(tmp / "i.zip", n=40)
    return [f"data.path={tmp / 'i.zip'}", *more]


def torchcfm_file(tmp: Path) -> list[str]:
    torch.save({"ema_model": guided_state(8, (1, 2), 1, (16,), 32)}, tmp / "cfm.pt")
    sizes = [f"+network.net.{s}" for s in UNET] + [f"+teacher.network.{s}" for s in UNET]
    return cifar10(
        tmp, f"teacher.checkpoint={tmp / 'cfm.pt'}", *sizes, "training.batch_size=2", "method.online_steps=2"
    )


def rectified_flow(tmp: Path) -> list[str]:
    sizes = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (16,)}
    kinds = modules(**sizes, size=32)  # type: ignore[arg-type]
    write_rectified_flow(tmp / "checkpoint_8.pth", state_of(kinds, 8))
    told = [f"{name}={list(value) if isinstance(value, tuple) else value}" for name, value in sizes.items()]
    network = [f"network.{t}".replace(" ", "") for t in told] + [f"+teacher.network.{t}".replace(" ", "") for t in told]
    return cifar10(tmp, "network=rectified_flow", "teacher=rectified_flow", *network, "training.batch_size=2",
                   f"teacher.checkpoint={tmp / 'checkpoint_8.pth'}")  # fmt: skip


def diffusers(tmp: Path) -> list[str]:
    """A DDPM pipeline's directory, whose network predicts eps."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    net = UNet2DModel(32, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=8, norm_num_groups=4,
                      down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp / "ddpm")
    return cifar10(tmp, "network=diffusers", "teacher=diffusers", f"teacher.directory={tmp / 'ddpm'}",
                   "~teacher.checkpoint=edm-cifar10-32x32-uncond-vp.pkl", "training.batch_size=2")  # fmt: skip


def fashion(tmp: Path, *more: str) -> list[str]:
    write_fashion(tmp, n=80)
    return [f"data.directory={tmp}", "network.width=16", "network.depth=1", "evaluation.n=70", *more]


SMALL: dict[str, Any] = {
    "fashion_teacher": fashion,
    "fashion_fgm": lambda tmp: fashion(tmp, "method.generator_init=random", "method.online_init=random"),
    "cifar10_teacher": lambda tmp: cifar10(tmp, *(f"network.{s}" for s in UNET), "training.batch_size=2"),
    "cifar10_fgm": lambda tmp: cifar10(tmp, *(f"network.{s}" for s in UNET), "training.batch_size=2"),
    "cifar10_fgm_exact": torchcfm_file,
    "cifar10_realdata_fgm": torchcfm_file,
    "cifar10_edm_fgm": lambda tmp: cifar10(tmp, *edm_file(tmp, 32, 0)),
    "cifar10_cond_fgm": lambda tmp: cifar10(tmp, *edm_file(tmp, 32, 10)),
    "cifar10_fgm_gan": lambda tmp: [*torchcfm_file(tmp), "method.discriminator.start_step=1"],
    "imagenet64_edm_fgm": lambda tmp: imagenet64(tmp, *edm_file(tmp, 64, 1000)),
    "imagenet64_edm_fgm, EDM2": lambda tmp: imagenet64(
        tmp, "network.architecture=edm2_img64_s", *edm_file(tmp, 64, 1000, edm2=True)
    ),
    "cifar10_edm_fgm, rectified flow": rectified_flow,
    "cifar10_edm_fgm, diffusers": diffusers,
}  # fmt: skip


@pytest.mark.parametrize("experiment", SMALL)
def test_a_recipe_runs_on_the_official_formats(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps: weights move, stay finite, and no update is left out."""
    module, run = built(experiment, tmp_path, monkeypatch)
    before = {name: weight.clone() for name, weight in module.result().state_dict().items()}
    fit(module, run)
    after = module.result().state_dict()
    assert int(module.step) == 2 and all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(skips == [0, 0] for skips in module.skipped.values())
    if getattr(module, "gan", None):
        (head,) = module.gan.discriminator.heads
        assert head.layers[-1].weight.any(), "it begins at zero"


@pytest.mark.parametrize("experiment", ["cifar10_edm_fgm", "imagenet64_edm_fgm, EDM2"])
def test_a_recipe_resumes_and_is_measured_under_edms_protocol(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after one cycle it ends, to the bit, where it ends in one go; at another n than EDM's, fd is no fid."""

    def made(run_dir: Path) -> tuple[Any, Any]:
        return built(experiment, tmp_path, monkeypatch, f"run_dir={run_dir}", "training.save_every_n_steps=1")

    whole, resumed = whole_and_cut(made, tmp_path, monkeypatch, 1)
    assert same_bits(whole, resumed)
    callback = made(tmp_path / "parts")[1].evaluation_callback
    protocols = {(m.metric, m.weights): m.protocol for m in callback.measure_all(resumed)}
    assert protocols["fd", "ema"].startswith("edm but for n = 50000") and ("fid", "ema") not in protocols


@pytest.mark.parametrize("experiment", ["cifar10_edm_fgm", "cifar10_fgm_exact", "cifar10_edm_fgm, rectified flow"])
def test_what_is_timed_needs_no_file_of_a_teacher(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "cifar10_ddpmpp", (SongUNet, 32, EDM))
    small = [a for a in SMALL[experiment](tmp_path) if not a.startswith("teacher.checkpoint")]
    on_cpu = ["trainer.accelerator=cpu", "evaluation=random_features", f"outputs={tmp_path}"]
    config = compose_experiment(experiment.partition(",")[0], [*small, *on_cpu, "teacher.checkpoint=nowhere"])
    module: Any = build_module(untrained(config))
    teacher, generator = module.teacher.state_dict(), module.generator.net.state_dict()
    assert teacher.keys() == generator.keys() and all(torch.equal(teacher[k], generator[k]) for k in teacher)


def built(experiment: str, tmp: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[Any, Any]:
    """The experiment, named up to a comma, on small files and a small network, for two cycles, in random features."""
    small, experiment = SMALL[experiment](tmp), experiment.partition(",")[0]
    architecture, size = (
        compose_experiment(experiment, small)["network"].get("architecture", ""),
        64 if "64" in experiment else 32,
    )
    kind = (EDM2UNet, size, EDM2) if architecture.startswith("edm2") else (SongUNet, size, EDM)
    monkeypatch.setitem(ARCHITECTURES, architecture, kind)
    suite = ["evaluation=random_features", "evaluation.n=40", "evaluation.suite.metrics=[fd]",
             "+evaluation.suite.protocol=edm", "method.teacher_steps=2"]  # fmt: skip
    quick = ["training.max_steps=2", "training.warmup_steps=0", "evaluation.every=0", "trainer.accelerator=cpu", "logger=csv",
             "trainer.precision=32-true", f"outputs={tmp}", f"experiments={tmp / 'e'}"]  # fmt: skip
    suite = [] if experiment.startswith("fashion") else suite[: 4 if experiment.endswith("teacher") else 5]
    config = compose_experiment(experiment, [*suite, *small, *quick, *more])
    if "experiment" in (config["teacher"] or {}):
        config["teacher"] = config["network"]
    module, run = build(config, Console(quiet=True))
    run.run_dir.mkdir(parents=True, exist_ok=True)
    return module, run
