"""A pool holds as many examples as it says, of its data, each with its own condition."""

import pytest
import torch

from fgm.data import pool
from fgm.data.pixels.quantise import dequantise, quantise
from fgm.data.pool import Pool
from fgm.data.shapes.dataset import Shapes
from fgm.utils.random import keyed_generator


@pytest.mark.parametrize("n", [8, 11])
def test_a_pool_is_n_examples_of_its_data_and_draws_them_with_their_captions(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CHUNK", 4)
    data, held = Shapes(), Pool(Shapes(), n=n)
    parts = [data.draw(min(4, n - i), keyed_generator(0, "pool", index=i // 4)) for i in range(0, n, 4)]
    images, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
    levels = dequantise(quantise(images))
    x, y = held.draw(40 * n, keyed_generator("draw", index=0))
    which = (x[:, None] == levels).flatten(2).all(2)
    assert which.sum(1).eq(1).all() and which.any(0).all() and torch.equal(y, tokens[which.int().argmax(1)])
    assert held.conditions(5, keyed_generator("y", index=0)).shape == (5, tokens.shape[1])
