"""RealUID's data term in training, and real images that do not fit, for it or for an adversary."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import gan
from rich.console import Console
from torch.testing import assert_close
from toy_trainings import distillation, moved, run, weights

from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.data.points import Ring
from fgm.training.real_images import RealData
from fgm.utils.errors import UserError


def test_real_data_that_is_switched_off_draws_nothing_and_changes_no_bit(tmp_path: Path, monkeypatch: Any) -> None:
    plain = weights(run(distillation(), tmp_path / "plain"))
    monkeypatch.setattr(Ring, "draw", lambda *_: pytest.fail("drew data"))
    off = distillation(real_data=partial(RealData, a=1.0, b=1.0))
    assert all(torch.equal(plain[name], tensor) for name, tensor in weights(run(off, tmp_path / "off")).items())


def test_the_online_turn_adds_as_many_real_images_with_the_other_shares() -> None:
    """a |v - (b/a) c|^2 of the generated, and (1 - a) |v - ((1 - b)/(1 - a)) c|^2 of a batch from its own stream."""
    module = distillation(real_data=partial(RealData, a=0.75, b=0.5))
    v, c = torch.randn(2, 16, 2)
    noise, s = module.noise("real", 3), module.setting
    x_t, real_c, t = s.noisy(Ring().draw(16, noise)[0], s.time, noise)
    wanted = 0.75 * (v - c / 1.5).square().mean() + 0.25 * (module.online(x_t, t) - 2 * real_c).square().mean()
    assert_close(module.real_data.online_loss(v, c, *(module.real_data.drawn(module, 3) or ())), wanted)


def test_real_data_moves_both_networks_elsewhere(tmp_path: Path) -> None:
    plain = weights(run(distillation(), tmp_path / "plain"))
    real = weights(run(distillation(real_data=partial(RealData, a=0.9, b=0.92)), tmp_path / "real"))
    assert moved(plain, real) == {"generator", "online", "ema"}


class Labelled(Ring):
    """Points that tell a label, or are flat images."""

    def draw(self, n: int, generator: Any) -> Any:
        return super().draw(n, generator)[0], torch.zeros(n, dtype=torch.int64)


class Wide(Ring):
    shape = (3,)


def test_real_images_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"real images are of shape \(3,\), and generated ones of \(2,\)$"):
        gan(data=Wide())
    with pytest.raises(UserError, match=r"the real images have conditions, and the online network is not trained so$"):
        distillation(real_data=partial(RealData, a=0.9, b=0.9, data=Labelled()))
    assert gan(data=Labelled()).adversary.seen(None) is None


def test_a_folder_that_is_not_there_is_refused_before_a_teacher_is_trained() -> None:
    node = "{_target_: fgm.data.folders.ImageFolder, directory: /no/pngs}"
    for method in ("fgm_gan", "fgm_realdata"):
        name = {"fgm_gan": "adversary", "fgm_realdata": "real_data"}[method]
        config = read_recipe("digits_fgm", [f"method={method}", f"method.{name}.data={node}", "outputs=/no/outputs"])
        with pytest.raises(UserError, match=r"^/no/pngs: no such folder of PNGs$"):
            build(config, Console(quiet=True))
