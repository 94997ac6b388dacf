"""Every family of flow transformers is distilled, as whole networks and with adapters; sana_fgm from its command."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from stock_families import batch, load, save, size
from tiny_families import TINY
from toy_trainings import CONFIG, moved, pieces, run, weights

from fgm.cli import sample, train
from fgm.cli.config import compose_experiment
from fgm.networks.lora import LoRA
from fgm.teachers.diffusers.conditions import PromptFile
from fgm.teachers.diffusers.dataset import FamilyPrompts
from fgm.teachers.diffusers.guidance import FamilyGuidance
from fgm.training.distillation import Distillation
from fgm.utils.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a pipeline as published, with its encoded prompts beside the parts."""
    return cache(lambda name: save(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapters"])
@pytest.mark.parametrize("name", TINY)
def test_two_steps_of_distillation_train_generator_and_online_network(
    name: str, whole: bool, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher = FamilyGuidance(load(name, saved(name)), 1.5)
    data = FamilyPrompts(PromptFile(str(saved(name) / "prompts.safetensors")), str(saved(name)), **size(name))
    config = replace(CONFIG, max_steps=2, batch_size=2)
    adapters = None if whole else LoRA(rank=2, alpha=2.0, targets=teacher.family.lora_targets)
    module = Distillation(
        **pieces(teacher=teacher, data=data, config=config), t_star=0.9, guidance="long_and_short", adapters=adapters
    )
    before, frozen = weights(module), {key: value.clone() for key, value in teacher.state_dict().items()}
    assert isinstance(module.velocities[1], FamilyGuidance)
    run(module, tmp_path)
    assert moved(before, weights(module)) >= {"generator", "online"} and int(module.step) == 2
    assert all(torch.equal(value, teacher.state_dict()[key]) for key, value in frozen.items())
    assert module(torch.zeros(1, *data.shape), batch(name)[:1]).isfinite().all()


def settings(name: str, model: Path, root: Path) -> list[str]:
    sizes = [f"network.{key}={value}" for key, value in size(name).items()]
    return [
        f"network.model={model}", *sizes, f"data.cache.file={model / 'prompts.safetensors'}",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "training.max_steps=2", "training.batch_size=2",
        "training.warmup_steps=0", "training.save_every_n_steps=1", "training.log_every_n_steps=1", "optimizer.lr=1e-3",
        "method.teacher_steps=2", "method.teacher_dtype=float32", "evaluation.n=2", "evaluation.every=0", f"experiments={root / 'experiments'}",
        f"outputs={root / 'outputs'}",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["sana", "wan"])
def test_command_trains_and_samples_images_and_videos(name: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    given = settings(name, saved(name), tmp_path)
    train.main(["experiment=sana_fgm", *given])
    run_dir = Path(compose_experiment("sana_fgm", given)["run_dir"])
    assert (run_dir / "results.json").is_file() and (run_dir / "generator.safetensors").is_file()
    sample.main(["experiment=sana_fgm", *given, "prompt=two cats", "n=1", f"out={tmp_path / 'drawn.png'}"])
    assert (tmp_path / "drawn.png").is_file()


def test_random_weights_are_not_trained(saved: Callable[[str], Path], tmp_path: Path) -> None:
    given = [*settings("sana", saved("sana"), tmp_path), "network.random_init=true"]
    with pytest.raises(UserError, match="random weights are for benchmarks"):
        train.main(["experiment=sana_fgm", *given])
