"""Suites with prompts: the order of prompts is balanced, and GenEval of a suite equals GenEval of a folder."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from geneval_files import example_prompts, write_layout, write_prompts
from torch import Tensor

from fgm.data.geneval import Metadata
from fgm.data.images import Digits
from fgm.evaluation import measure
from fgm.evaluation.geneval.folder import score_folder
from fgm.evaluation.geneval.metric import GenEval, GenEvalSuite
from fgm.evaluation.geneval.rules import Detection, Pixels
from fgm.evaluation.prompt_score import rounds
from fgm.utils.errors import UserError

PROMPTS = example_prompts(11)
CLASSES = sorted({clause.cls for prompt in PROMPTS for clause in prompt.include})


class ByShade:
    """A detector whose class and number of objects are the red and green values of the first pixel."""

    protocol = "by shade"

    def detect(self, image: Pixels) -> list[Detection]:
        name, count = CLASSES[image[0, 0, 0]], int(image[0, 0, 1])
        return [Detection(name, (i, 0, i + 1, 1), 0.95, color="red") for i in range(count)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> GenEvalSuite:
    path = tmp_path_factory.mktemp("prompts") / "metadata.jsonl"
    write_prompts(path, PROMPTS)
    return GenEvalSuite(str(path), ByShade(), samples=2)


def image_of(suite: GenEvalSuite, prompt_id: int) -> Tensor:
    """An image that shows the first clause of a prompt to ByShade, or nothing for every fifth prompt."""
    first = suite.sequence[prompt_id].include[0]
    x = torch.zeros(3, 4, 4, dtype=torch.uint8)
    x[0, 0, 0], x[1, 0, 0] = CLASSES.index(first.cls), first.count if prompt_id % 5 else 0
    return x


def test_rounds_alternate_tags_of_different_sizes() -> None:
    order = rounds({"a": [("a0", 2), ("a1", 1)], "b": [("b0", 5)]}, seed=0)
    assert Counter(order) == {"a0": 2, "a1": 1, "b0": 5}
    assert [item[0] for item in order] == ["a", "b", "a", "b", "a", "b", "b", "b"]
    assert {order[0], order[2]} == {"a0", "a1"} and order[4] == "a0"


def test_sequence_has_all_prompts_and_a_balanced_beginning(suite: GenEvalSuite) -> None:
    assert Counter(suite.sequence) == dict.fromkeys(PROMPTS, 2)
    tags = Counter(suite.sequence[i].tag for i in suite.prompt_ids(torch.arange(30)).tolist())
    assert set(tags.values()) == {5} and len(tags) == 6
    assert suite.prompt_ids(torch.tensor([2 * len(PROMPTS) + 3])).tolist() == [3]


def test_score_of_a_suite_equals_that_of_the_folder(suite: GenEvalSuite, tmp_path: Path) -> None:
    """The same images, as an official folder and as samples in memory in the order of the suite."""
    prompt_ids = torch.arange(len(suite.sequence))
    images = torch.stack([image_of(suite, i) for i in prompt_ids.tolist()])
    places: dict[Metadata, list[int]] = {}
    for i, prompt in enumerate(suite.sequence):
        places.setdefault(prompt, []).append(i)

    def draw(index: int, ordinal: int) -> Pixels:
        return images[places[PROMPTS[index]][ordinal]].movedim(0, -1).contiguous().numpy()

    write_layout(tmp_path, PROMPTS, draw, per_prompt=2)
    folder = score_folder(GenEval(ByShade()), tmp_path, PROMPTS, 2).scores
    memory = {m.metric: m for m in measure(suite, images, prompt_ids)}
    assert 0 < folder.overall < 1 and memory["geneval"].value == pytest.approx(folder.overall, abs=1e-12)
    for tag, value in folder.tags.items():
        assert memory[f"geneval_{tag}"].value == pytest.approx(value, abs=1e-12)
    low, high = memory["geneval"].extra["ci95"]
    assert low < folder.overall < high and memory["geneval"].n == 2 * len(PROMPTS)


def test_protocol_names_the_subset_of_prompts(suite: GenEvalSuite) -> None:
    (score, *_) = measure(suite, torch.stack([image_of(suite, i) for i in range(12)]), torch.arange(12))
    assert "12 prompts, " in score.protocol and score.protocol.endswith(f" of {len(PROMPTS)}")


def test_samples_and_data_without_prompts_are_errors(suite: GenEvalSuite, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="geneval needs samples of its own prompts"):
        measure(suite, torch.stack([image_of(suite, i) for i in range(12)]))
    write_prompts(tmp_path / "metadata.jsonl", PROMPTS)
    with pytest.raises(UserError, match="Digits has none"):
        GenEvalSuite(str(tmp_path / "metadata.jsonl"), ByShade(), data=Digits())
