"""Methods of the family as configs, variants trained and loaded by name, and settings that do not fit together."""

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from rich.console import Console
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import last_weights

from fgm.cli import train
from fgm.cli.build import build
from fgm.cli.config import compose_experiment, digest
from fgm.cli.loading import load_source
from fgm.cli.runs import finished
from fgm.evaluation.sampling import Sampler, balanced, draw_samples
from fgm.flow import losses
from fgm.flow.paths import RectifiedPath
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

PATH = RectifiedPath()


def terms(method: str, x_0: Tensor, t: Tensor, u: Tensor, v: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss of a method's config, (n,), and the x_0-predictions of u and v."""
    node = compose_experiment("digits_fgm", [f"method={method}"])["method"]
    x_t, c = PATH.interpolate(x_0, eps, t)
    x_0_u, x_0_v = (PATH.x_0_from_velocity(x_t, velocity, t).detach() for velocity in (u, v))
    with torch.no_grad():
        scale = instantiate(node["weighting"])(PATH, t) * instantiate(node["normalizer"])(x_0, x_0_u, x_0_v)
    return scale * losses.fgm(u, v, c, node["lambda_1"], node["detach"]), x_0_u, x_0_v


def draws(n: int = 6, d: int = 5) -> tuple[Tensor, ...]:
    noise = keyed_generator("family", index=0)
    x_0, u, v, eps = (torch.randn(n, d, generator=noise) for _ in range(4))
    return x_0, torch.rand(n, generator=noise).clamp(0.1, 0.9), u, v, eps


@pytest.mark.usefixtures("float64")
def test_sid_is_twice_its_paper_s_integrand_at_alpha_1_2() -> None:
    """2 <D, (x_0^u - x_0) - alpha D>, D = x_0^u - x_0^v, over mean|x_0 - x_0^u| (arXiv 2404.04057)."""
    x_0, t, u, v, eps = draws()
    loss, x_0_u, x_0_v = terms("sid", x_0, t, u, v, eps)
    delta = x_0_u - x_0_v
    integrand = (delta * ((x_0_u - x_0) - 1.2 * delta)).mean(1) / (x_0 - x_0_u).abs().mean(1)
    assert_close(loss, 2 * integrand)


@pytest.mark.usefixtures("float64")
def test_dmd_moves_x_0_along_the_difference_of_the_predictions() -> None:
    """grad of x_0 = 2 t (x_0^v - x_0^u) / mean|x_0 - x_0^u|, DMD2's but for 2 t, and a mean over dims."""
    x_0, t, u, v, eps = draws()
    x_0 = x_0.requires_grad_()
    loss, x_0_u, x_0_v = terms("dmd", x_0, t, u, v, eps)
    (gradient,) = torch.autograd.grad(loss.sum(), x_0)
    scale = 2 * t / (x_0 - x_0_u).abs().mean(1) / x_0.shape[1]
    assert_close(gradient, scale.detach()[:, None] * (x_0_v - x_0_u))


SHORT = '"training.max_steps=2","training.batch_size=8","evaluation.n=40"'
GUIDABLE = f'{SHORT},"method.label_dropout=0.1"'
TINY = [
    "training.max_steps=3", "training.batch_size=8", "training.log_every_n_steps=1", "evaluation.every=2", "evaluation.n=40",
    "evaluation.n_in_training=40", "method.teacher_steps=2", "logger=csv",
    f"teacher.overrides=[{SHORT}]",
]  # fmt: skip
VARIANTS = {
    "whole": ["method.steps=2", "method.low_memory=true"],
    "adapters": [
        "method=fgm_lora", "method.adapters.targets=[qkv,out,head]", "method.adapters.rank=2", "method.steps=2",
        "method.guidance=long_and_short", "teacher.guidance=2.0", f"teacher.overrides=[{GUIDABLE}]",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One teacher for all variants."""
    root = tmp_path_factory.mktemp("variants")
    return [f"outputs={root}/outputs", f"experiments={root}/experiments"]


def drawn(source: Sampler) -> Tensor:
    return draw_samples(source, 1, 8, (1, 8, 8), balanced(10).conditions, torch.device("cpu"))[0]


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_finished_run_draws_the_samples_of_its_average(overrides: list[str], places: list[str]) -> None:
    arguments = [*TINY, *overrides, *places]
    train.main(["experiment=digits_fgm", *arguments])
    config = finished(compose_experiment("digits_fgm", arguments))
    source, run_dir = load_source(config), Path(config["run_dir"])
    measured = json.loads((run_dir / "results.json").read_text())["results"]
    assert {row["nfe"] for row in measured if row["weights"] in ("ema", "raw")} == {2} == {source.nfe}
    module, _ = build(config, Console(quiet=True))
    module.load_state_dict(last_weights(run_dir))
    assert torch.equal(drawn(source), drawn(module.samplers()[0]))
    assert not torch.equal(drawn(source), drawn(module.samplers()[2]))


def test_targets_that_match_no_layer_of_the_teacher_are_rejected(places: list[str]) -> None:
    with pytest.raises(UserError, match="match no linear layer of DiT"):
        train.main(["experiment=digits_fgm", *TINY, "method=fgm_lora", *places])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["method.steps=0"], "method.steps = 0"),
        (["method.guidance=short"], "none, teacher, long_and_short"),
        (["method=fgm_lora", "method.adapters.rank=0"], "method.adapters.rank = 0"),
        (["method=fgm_lora", "method.adapters.base=float16"], "float32, bfloat16"),
        (["training.save_every_minutes=0"], "save_every_minutes"),
    ],
)
def test_bad_value_is_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_experiment("digits_fgm", overrides)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["method=fgm_lora", "method.adapters.targets=[qkv]"], r"method\.adapters"),
        (["method=fgm_gan"], r"method\.discriminator"),
        (["trainer.precision=64-true"], r"trainer\.precision"),
        (["training.compile=true"], r"training\.compile"),
        (["training.micro_batches=2"], r"training\.micro_batches"),
        (["training.ema_device=cpu"], r"training\.ema_device"),
    ],
)
def test_settings_that_fsdp_does_not_support_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"strategy=fsdp: {message}.*; give strategy=ddp$"):
        compose_experiment("digits_fgm", ["strategy=fsdp", "trainer.devices=2", *overrides])
    compose_experiment("digits_fgm", ["strategy=ddp", "trainer.devices=2", *overrides])


def test_how_often_checkpoints_are_saved_changes_no_digest() -> None:
    plain = digest(compose_experiment("digits_fgm", []))
    assert digest(compose_experiment("digits_fgm", ["training.save_every_minutes=0.5"])) == plain
