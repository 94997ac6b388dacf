"""Encoded prompts as data without images, and the suite of colours that asks for them."""

from pathlib import Path

import pytest
import torch
from prompt_caches import PROMPTS, written
from tiny_sd3 import SIZE
from torch import Tensor

from fgm.data import prompted
from fgm.data.pixels import quantise
from fgm.data.prompts import Prompts
from fgm.data.text.index import PromptCache
from fgm.evaluation import PromptMetric, measure
from fgm.evaluation.color_statistics import ColorStatistics
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.sampling import Sampler
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator, sample_noise


def test_prompts_are_data_without_images(plan: PromptCache, model: Path) -> None:
    data = Prompts(written(plan), SIZE, str(model))
    assert data.shape == (4, 4, 4) and data.reference(3, keyed_generator("x", index=0)).shape == (0, 4, 4, 4)
    drawn = data.conditions(4000, keyed_generator("conditions", index=0))
    shares = drawn.bincount(minlength=5) / 4000
    assert shares[0] == 0 and (shares[1:] - 0.25).abs().max() < 0.04
    assert data.encode(["x", "a red cat", ""]).tolist() == [4, 1, 0]
    assert prompted(data) is data and data.decode(data.encode(["x", "a red cat", ""])) == ["x", "a red cat", ""]
    with pytest.raises(UserError, match="'a blue cat' is not in"):
        data.encode(["x", "a blue cat"])
    with pytest.raises(UserError, match="prompts without images"):
        data.draw(1, keyed_generator("x", index=0))
    with pytest.raises(UserError, match="no multiple of 16"):
        Prompts(plan, 40, str(model))


def test_the_suite_asks_for_the_prompts_and_sees_images(plan: PromptCache, model: Path) -> None:
    data, suite = Prompts(written(plan), SIZE, str(model)), ColorStatistics(plan)
    assert isinstance(suite, PromptMetric)
    assert suite.prompts(suite.prompt_ids(torch.arange(5))) == [*PROMPTS, PROMPTS[0]]
    source = Evaluator(suite, batch=2).source(Sampler("x_0 = z", First(), 1, "ema"), data, torch.device("cpu"), 3)
    images = source.take(range(3)).x
    z = sample_noise(1234, range(3), data.shape)
    assert images.shape == (3, 3, SIZE, SIZE) and torch.equal(images[:2], quantise(data.to_images(z[:2])))
    assert data.encode(suite.prompts(torch.arange(4))).tolist() == suite.conditions(torch.arange(4)).tolist()


def test_the_suite_knows_red_from_grey(plan: PromptCache) -> None:
    suite = ColorStatistics(written(plan))
    grey, red = torch.full((1, 3, 4, 4), 1 / 255), torch.tensor([2.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = {m.metric: m.value for m in measure(suite, torch.cat([grey, red]))}
    spread = torch.tensor([1.0, -1, -1]).repeat(16).std().item()
    expected = {"pixel_mean": (1 / 255 - 1 / 3) / 2, "pixel_std": spread / 2, "saturation": 0.5, "clipped": 0.5}
    assert found == pytest.approx(expected, abs=1e-5)


class First(torch.nn.Module):
    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return z
