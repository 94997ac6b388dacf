"""Points in the plane: centred, of one scale, and on the dark squares of the checkerboard."""

import pytest
import torch

from fgm.data.points import Checkerboard, Points, Ring, Spirals, TwoMoons
from fgm.utils.random import keyed_generator


@pytest.mark.parametrize("data", [Ring(), Checkerboard(), TwoMoons(), Spirals()], ids=lambda d: type(d).__name__)
def test_points_are_centred_and_of_one_scale(data: Points) -> None:
    x = data.points(20_000, keyed_generator("test", index=1))
    assert x.mean(0).abs().max() < 0.35
    assert 0.5 < data.std < 2
    assert x.abs().max() < 3.7  # the ring: radius 2 and five widths of 0.3


@pytest.mark.parametrize("cells", [2, 4])
def test_checkerboard_points_lie_on_dark_squares_and_their_neighbours_do_not(cells: int) -> None:
    data = Checkerboard(cells=cells)
    x, square = data.points(5000, keyed_generator("test", index=2)), 4 / cells
    assert data.supports(x).all()
    for shift in ((square, 0), (0, square), (-square, 0), (0, -square)):
        assert not data.supports(x + torch.tensor(shift)).any()
    assert not data.supports(x + 4 * square * (cells // 2 + 1)).any()
