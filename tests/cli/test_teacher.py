"""Teachers by the name of their run: one that is not finished is as one that is missing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fgm.cli import teacher
from fgm.cli.config import compose_experiment
from fgm.cli.loading import load_source, weights_file
from fgm.cli.runs import finished, write_yaml
from fgm.utils.errors import UserError
from fgm.utils.records import write_json


def test_a_teacher_that_was_cut_off_while_it_was_measured_is_not_trained_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights lie there, and its run would go on, against teacher.train=false and in every process of several."""
    own = compose_experiment("digits_teacher", [f"outputs={tmp_path}"])
    run_dir = Path(own["run_dir"])
    run_dir.mkdir(parents=True)
    write_yaml(own, run_dir / "config.yaml")
    (run_dir / teacher.WEIGHTS).touch()
    node = compose_experiment("digits_fgm", [f"outputs={tmp_path}"])["teacher"]
    teacher.require(node)
    with pytest.raises(UserError, match=r"is missing and teacher\.train is false: make train EXP=digits_teacher"):
        teacher.require(node | {"train": False})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the teacher digits_teacher is not trained yet"):
        teacher.require(node)
    write_json(run_dir / "results.json", {})
    teacher.require(node | {"train": False})


OWN = """
from torch import nn
from fgm.networks import VelocityModel

class Wide(VelocityModel):
    shape, num_classes = (1, 8, 8), 10

    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(64, width)

    def forward(self, x_t, t, condition=None):
        return self.layer(x_t.flatten(1))[:, :64].view_as(x_t)
"""


def test_a_finished_generator_has_the_architecture_of_a_teacher_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the experiment's, and no config of the suite tells it: `make sample` needs no more than `make train`."""
    (tmp_path / "wide_teacher.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["teacher=own", "teacher._target_=wide_teacher.Wide", "+teacher.width=72", f"outputs={tmp_path}"]
    config = compose_experiment("digits_fgm", own)
    weights = {"layer.weight": torch.randn(72, 64), "layer.bias": torch.randn(72)}
    Path(config["run_dir"]).mkdir()
    save_file(weights, weights_file(config))
    write_yaml(config, Path(config["run_dir"]) / "config.yaml")
    write_json(Path(config["run_dir"]) / "results.json", {})
    generator = load_source(finished(config)).model
    assert all(weights[name].equal(value) for name, value in generator.net.state_dict().items())
    assert generator(torch.randn(3, 1, 8, 8), torch.arange(3)).shape == (3, 1, 8, 8)
