"""Sources of prompts, the data set of encoded prompts without images, and the color statistics that it is measured by."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_caches import PROMPTS, written
from tiny_sd3 import SIZE
from torch import Tensor

from fgm.data.encodings import PromptCache
from fgm.data.pixels import quantise
from fgm.data.prompts import GenEvalPrompts, JsonLines, PromptDataset, ShapesCaptions, TextFile
from fgm.data.shapes.captions import encode
from fgm.evaluation import PromptMetric, measure
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.prompt_score import ColorStatistics
from fgm.evaluation.sampling import Sampler
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator, sample_noise


def test_sources_return_distinct_prompts_in_order(tmp_path: Path) -> None:
    text, lines, metadata = (tmp_path / name for name in ("a.txt", "a.jsonl", "metadata.jsonl"))
    text.write_text("a cat\n\n  a dog \na cat\n")
    lines.write_text('{"prompt": "a cat", "id": 1}\n{"prompt": "a dog"}\n')
    clause = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
    metadata.write_text(json.dumps(clause) + "\n")
    assert TextFile(str(text)).read() == JsonLines(str(lines)).read() == ["a cat", "a dog"]
    assert GenEvalPrompts(str(metadata)).read() == ["a cat"] and GenEvalPrompts(None).read() == []
    captions = ShapesCaptions(50).read()
    assert len(set(captions)) == len(captions) > 30 and len(encode(captions)) == len(captions)
    assert captions == ShapesCaptions(50).read() != ShapesCaptions(50, seed=1).read()


@pytest.mark.parametrize("source", [TextFile, JsonLines, GenEvalPrompts])
def test_empty_and_missing_prompt_files_are_refused(source: type[Any], tmp_path: Path) -> None:
    for content in ("", "\n \n"):
        (tmp_path / "prompts").write_text(content)
        with pytest.raises(UserError, match=r"prompts.* is empty"):
            source(str(tmp_path / "prompts")).read()
    with pytest.raises(UserError, match=r"nowhere.* is missing"):
        source(str(tmp_path / "nowhere")).read()


def test_a_line_without_a_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}\n{"text": "a dog"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: prompt must be a text with something to see"):
        JsonLines(str(tmp_path / "a.jsonl")).read()


def test_prompts_are_data_without_images(plan: PromptCache, model: Path) -> None:
    data = PromptDataset(written(plan), SIZE, str(model))
    assert data.shape == (4, 4, 4) and data.reference(3, keyed_generator("x", index=0)).shape == (0, 4, 4, 4)
    drawn = data.conditions(4000, keyed_generator("conditions", index=0))
    shares = drawn.bincount(minlength=5) / 4000
    assert shares[0] == 0 and (shares[1:] - 0.25).abs().max() < 0.04
    assert data.encode(["x", "a red cat", ""]).tolist() == [4, 1, 0]
    assert data.prompts is data and data.decode(data.encode(["x", "a red cat", ""])) == ["x", "a red cat", ""]
    with pytest.raises(UserError, match="'a blue cat'"):
        data.encode(["x", "a blue cat"])
    with pytest.raises(UserError, match="has no images"):
        data.draw(1, keyed_generator("x", index=0))
    with pytest.raises(UserError, match="multiple of 16"):
        PromptDataset(plan, 40, str(model))


def test_color_statistics_are_measured_on_decoded_images_of_the_prompts(plan: PromptCache, model: Path) -> None:
    data, suite = PromptDataset(written(plan), SIZE, str(model)), ColorStatistics(plan)
    assert isinstance(suite, PromptMetric)
    assert suite.prompts(suite.prompt_ids(torch.arange(5))) == [*PROMPTS, PROMPTS[0]]
    source = Evaluator(suite, batch=2).source(Sampler("x_0 = z", First(), 1, "ema"), data, torch.device("cpu"), 3)
    images = source.take(range(3)).x
    z = sample_noise(1234, range(3), data.shape)
    assert images.shape == (3, 3, SIZE, SIZE) and torch.equal(images[:2], quantise(data.to_images(z[:2])))
    assert data.encode(suite.prompts(torch.arange(4))).tolist() == suite.conditions(torch.arange(4)).tolist()


def test_color_statistics_tell_red_from_grey(plan: PromptCache) -> None:
    suite = ColorStatistics(written(plan))
    grey, red = torch.full((1, 3, 4, 4), 1 / 255), torch.tensor([2.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = {m.metric: m.value for m in measure(suite, torch.cat([grey, red]))}
    spread = torch.tensor([1.0, -1, -1]).repeat(16).std().item()
    expected = {"pixel_mean": (1 / 255 - 1 / 3) / 2, "pixel_std": spread / 2, "saturation": 0.5, "clipped": 0.5}
    assert found == pytest.approx(expected, abs=1e-5)


class First(torch.nn.Module):
    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return z
