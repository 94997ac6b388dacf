"""Points are centred and of one scale; digits are split once and for all."""

import pytest
import torch

from fgm.data.digits import Digits
from fgm.data.points import Checkerboard, Points, Ring, Spirals, TwoMoons
from fgm.utils.random import keyed_generator


@pytest.mark.parametrize("data", [Ring(), Checkerboard(), TwoMoons(), Spirals()], ids=lambda d: type(d).__name__)
def test_points_are_centred_and_of_one_scale(data: Points) -> None:
    x = data.points(20_000, keyed_generator("test", index=1))
    assert x.mean(0).abs().max() < 0.35
    assert 0.5 < data.std < 2
    assert x.abs().max() < 3.7  # the ring: radius 2 and five widths of 0.3


def test_the_checkerboard_has_no_point_on_a_light_square() -> None:
    cell = ((Checkerboard().points(5000, keyed_generator("test", index=2)) + 2).clamp(0, 3.999)).long()
    assert ((cell.sum(1) % 2) == 0).all()


def test_the_digit_split_is_stratified_and_disjoint() -> None:
    split = Digits().split
    (train, train_labels), (test, test_labels) = split["train"], split["test"]
    assert len(train) + len(test) == 1797
    assert (train_labels.bincount() - 4 * test_labels.bincount()).abs().max() <= 4
    assert torch.cdist(train.flatten(1), test.flatten(1)).min() > 0
