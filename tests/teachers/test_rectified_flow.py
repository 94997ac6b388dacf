"""Rectified flow's checkpoints give their own network's output with time reversed; other networks are rejected."""

from pathlib import Path
from typing import Any

import pytest
import torch
from score_sde import ScoreUNet, modules, state_of, write_rectified_flow
from torch import Tensor
from torch.testing import assert_close

from fgm.teachers.rectified_flow import RectifiedFlow, pretrained
from fgm.utils.errors import UserError

SHAPE: dict[str, Any] = {"width": 16, "multipliers": (1, 2), "blocks": 2, "attention": (4,), "size": 8}
KINDS = modules(**SHAPE)
STATE = state_of(KINDS, 16)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.rand(4, generator=generator)


@pytest.mark.parametrize("legacy, weights, share", [(False, "ema", 1.0), (True, "ema", 1.0), (False, "model", 0.5)])
def test_velocity_is_their_network_with_time_reversed(legacy: bool, weights: Any, share: float, tmp_path: Path) -> None:
    """Of the average, or of the last weights, which are half of it here; every weight is random and counts."""
    write_rectified_flow(tmp_path / "checkpoint_8.pth", STATE, legacy)
    velocity = pretrained(str(tmp_path / "checkpoint_8.pth"), RectifiedFlow(**SHAPE), weights=weights)
    x_t, t = inputs()
    theirs = ScoreUNet({name: share * weight for name, weight in STATE.items()}, KINDS)
    assert_close(velocity(x_t, t), -theirs(x_t, 999 * (1 - t)), atol=1e-4, rtol=1e-4)


WIDER = state_of(modules(**SHAPE | {"width": 32}), 32)
DEEPER = state_of(modules(**SHAPE | {"blocks": 3}), 16)
PYRAMID = STATE | {"all_modules.99.weight": torch.ones(2)}
BAD = {
    "wider": (WIDER, {}, "size mismatch"),
    "deeper": (DEEPER, {}, "has no DDPM"),
    "NCSN++": (PYRAMID, {}, "all_modules.99 has no counterpart"),
    "no average": (STATE, {"ema": {}}, "shadow_params"),
    "a shorter average": (STATE, {"ema": {"shadow_params": [torch.ones(1)]}}, "shorter"),
}


@pytest.mark.parametrize("state, changes, message", BAD.values(), ids=BAD.keys())
def test_other_network_is_a_one_line_user_error(state: Any, changes: Any, message: str, tmp_path: Path) -> None:
    write_rectified_flow(tmp_path / "c.pth", state, **changes)
    with pytest.raises(UserError, match=r"has no DDPM\+\+ of this size under ema") as error:
        pretrained(str(tmp_path / "c.pth"), RectifiedFlow(**SHAPE))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_labels_and_other_sizes_raise() -> None:
    net, (x_t, t) = RectifiedFlow(**SHAPE), inputs()
    with pytest.raises(ValueError, match="no classes"):
        net(x_t, t, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="was given"):
        net(x_t[..., 1:], t)


def test_full_size_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in RectifiedFlow().parameters()) == 61_804_419
