"""sd3_fgm on a tiny random pipeline, from prompts to a pipeline, on one device and on two; a half teacher's memory."""

import io
import json
import multiprocessing
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from rich.console import Console
from safetensors.torch import load_file, save_file
from sd3_runs import LORA, PROMPTS, cached
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from toy_trainings import last_weights

from fgm.cli import export, sample, train
from fgm.cli.build import build
from fgm.cli.config import compose_experiment
from fgm.cli.loading import load_source
from fgm.cli.runs import finished
from fgm.evaluation.sampling import Sampler, draw_samples
from fgm.networks import VelocityModel, sd3
from fgm.networks.guidance import unwrap_guidance
from fgm.networks.mixed_precision import use_bfloat16
from fgm.networks.sd3 import SD3Velocity
from fgm.training.checkpointing import export_weights
from fgm.training.distillation import Distillation
from fgm.training.distributed import gather_state
from fgm.training.trainer import fit
from fgm.utils import pipelines
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
MIXED = ["trainer.precision=bf16-mixed", "evaluation.every=0"]
UNREAD = "transformer.transformer_blocks.1.attn.add_q_proj."  # SD3 computes it, and reads no word behind its last block


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With latents of real images, for a discriminator."""
    root = tmp_path_factory.mktemp("sd3")
    noise = torch.Generator().manual_seed(0)
    save_file({"latents": torch.randn(8, 4, 4, 4, generator=noise)}, root / "latents.safetensors")
    return root


@pytest.fixture(scope="module")
def settings(root: Path) -> list[str]:
    """Of sd3_fgm, for the tiny pipeline, whose prompts are encoded."""
    return cached(root)


def built(settings: list[str], run_dir: Path, *overrides: str, experiment: str = "sd3_fgm") -> tuple[Any, Any]:
    return build(
        compose_experiment(experiment, [*settings, *overrides, f"run_dir={run_dir}"]), Console(file=io.StringIO())
    )


def states(module: Any) -> dict[str, Tensor]:
    """Of all networks, the teacher and what adapters share too."""
    nets = {"": module, "teacher.": module.teacher, "start.": module.frozen[1]}
    if hasattr(module.online, "shared"):
        nets["shared."] = module.online.shared.net
    return {f"{at}{name}": w.clone() for at, net in nets.items() for name, w in net.state_dict().items()}


def require_moved(module: Any, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """All trainable weights, their averages and the step have moved, and nothing else."""
    moved = {name for name, w in before.items() if not torch.equal(w, after[name])}
    trainable = {name for name, w in module.named_parameters() if w.requires_grad}
    assert {name.split(".")[0] for name in trainable} - {"gan"} == {"generator", "online"}
    assert trainable - moved == {name for name in trainable if UNREAD in name}
    averages = {name.replace("generator.", "ema.", 1) for name in trainable & moved if name.startswith("generator.")}
    assert moved - trainable == averages | {"step"}
    assert all(after[name].dtype == w.dtype and after[name].isfinite().all() for name, w in before.items())


ADAPTERS = ["method.adapters={_target_: fgm.networks.lora.LoRA, rank: 2, alpha: 2}", "method.teacher_dtype=float32"]


@pytest.mark.parametrize("adapters", [[], ADAPTERS], ids=["whole", "adapters"])
def test_run_with_gan_resumes_bit_exactly_and_exports_a_pipeline(
    adapters: list[str], settings: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"{{_target_: fgm.data.latents.Latents, path: '{root / 'latents.safetensors'}'}}"
    gan = [
        "method=fgm_gan", "method.discriminator.blocks=[transformer_blocks.0, transformer_blocks.1]",
        f"method.discriminator.data={data}", "method.discriminator.start_step=1", "method.discriminator.weight=0.5",
    ]  # fmt: skip
    overrides = [
        *gan,
        *settings,
        *adapters,
        "network.checkpointing=true",
        "training.max_steps=3",
        "training.ema_half_life=0.5",
    ]
    parts = ["experiment=sd3_fgm", *overrides, f"run_dir={tmp_path / 'parts'}"]
    module, place = built(overrides, tmp_path / "whole")
    before = states(module)
    fit(module, place)
    require_moved(module, before, states(module))
    die_in_step(2, lambda: train.main(parts), monkeypatch)
    train.main(parts)
    resumed, exported = last_weights(tmp_path / "parts"), load_file(tmp_path / "parts" / "generator.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, exported[name]) for name, tensor in module.result().state_dict().items())
    require_files(tmp_path / "parts")
    if not adapters:  # those of adapters: see below, and test_publish.py
        require_drawn(parts, tmp_path)


def die_in_step(step: int, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = Distillation.generator_gradient

    def dies(module: Any, *inputs: Any) -> Any:
        if int(module.step) == step:
            raise RuntimeError("killed")
        return gradient(module, *inputs)

    monkeypatch.setattr(Distillation, "generator_gradient", dies)
    with pytest.raises(RuntimeError, match="killed"):
        work()
    monkeypatch.undo()


def require_files(run_dir: Path) -> None:
    for name in ("generator.safetensors", "metrics.csv", "samples/000002.png", "samples/final.png"):
        assert (run_dir / name).stat().st_size > 0, name
    results = json.loads((run_dir / "results.json").read_text())["results"]
    assert {(row["nfe"], row["weights"]) for row in results} == {(1, "ema"), (1, "raw"), (1, "teacher"), (2, "teacher")}
    assert {row["metric"] for row in results} == {"pixel_mean", "pixel_std", "saturation", "clipped"}


def require_drawn(run: list[str], tmp_path: Path) -> None:
    """Pictures of a prompt, a GenEval folder, a pipeline."""
    sample.main([*run, f"prompt={PROMPTS[2]}", "n=2", f"out={tmp_path / 'two.png'}"])
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    line = '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}\n'
    (tmp_path / "metadata.jsonl").write_text(line)
    wanted = ["format=geneval", f"metadata={tmp_path / 'metadata.jsonl'}", "samples=2"]
    export.main([*run, *wanted, f"out={tmp_path / 'geneval'}"])
    assert len(list((tmp_path / "geneval" / "00000" / "samples").iterdir())) == 2
    export.main([*run, "format=diffusers", f"out={tmp_path / 'pipeline'}"])
    assert (tmp_path / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size > 0


def test_networks_share_the_encoded_prompts(settings: list[str], tmp_path: Path) -> None:
    module, _ = built(settings, tmp_path)
    nets = [module.generator.net, module.online, module.ema.net, module.frozen[1].net, unwrap_guidance(module.teacher)]
    assert all(isinstance(net, SD3Velocity) for net in nets)
    assert len({id(net.text) for net in nets}) == 1
    assert len({id(net.transformer) for net in nets}) == 4, "the start is the teacher"


def drawn(source: Sampler, shape: tuple[int, ...]) -> Tensor:
    return draw_samples(source, 1, 3, shape, lambda indices: 1 + indices, torch.device("cpu"))[0]


def test_adapters_on_a_bfloat16_base_load_by_the_names_that_diffusers_reads(
    settings: list[str], tmp_path: Path
) -> None:
    tiny = ["method.adapters.rank=2", "method.adapters.base=bfloat16", "method.steps=2", "network.checkpointing=true"]
    run = ["experiment=sd3_fgm_lora", *settings, *tiny, f"run_dir={tmp_path}"]
    train.main(run)
    names = load_file(tmp_path / "generator.safetensors").keys()
    assert len(names) == 2 * 15
    assert all(name.startswith("transformer.transformer_blocks.") and ".lora_" in name for name in names)
    module, _ = built([*settings, *tiny], tmp_path, experiment="sd3_fgm_lora")
    module.load_state_dict(last_weights(tmp_path))
    shape = module.data.shape
    ema, _, start, _ = (drawn(sampler, shape) for sampler in module.samplers())
    config = finished(compose_experiment("sd3_fgm_lora", run[1:]))
    assert_close(drawn(load_source(config), shape), ema, rtol=0, atol=1e-6)
    assert (ema - start).abs().max() > 1e-4


# several devices

HALF = [*MIXED, "network.checkpointing=true", "training.ema_half_life=0.5"]


def train_on_rank(settings: list[str], run_dir: Path) -> None:
    """Two steps, and what they moved: on the first rank, which knows the full networks."""
    module, run = built(settings, run_dir)
    before = states(module)
    fit(module, run)
    export_weights(module, run_dir)
    for optimizer in module.trainer.optimizers:
        saved = [value for state in optimizer.state.values() for value in state.values()]
        assert all(value.dtype == torch.float32 for value in saved)
    assert all(isinstance(p, DTensor) == ("fsdp" in run_dir.name) for p in module.teacher.parameters())
    after = gather_state(states(module))
    if not module.global_rank:
        require_moved(module, before, after)


@needs_fork
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_in_bfloat16_move_what_is_trained_and_export_one_device_s_names(
    strategy: str, settings: list[str], tmp_path: Path
) -> None:
    overrides = [*settings, *HALF, f"strategy={strategy}", "trainer.devices=2"]
    on_ranks(train_on_rank, overrides, tmp_path / strategy)
    ours = load_file(tmp_path / strategy / "generator.safetensors")
    module, _ = built([*settings, *HALF], tmp_path / "single")
    expected = module.result().state_dict()
    assert set(ours) == set(expected)
    assert all((ours[name].shape, ours[name].dtype) == (w.shape, torch.float32) for name, w in expected.items())


# a teacher in bfloat16


def called(net: VelocityModel) -> tuple[Tensor, Tensor]:
    """The velocity, and the gradient of its square's sum with respect to x_t."""
    noise = torch.Generator().manual_seed(0)
    x_t = torch.randn(3, 4, 4, 4, generator=noise).requires_grad_()
    v = net(x_t, torch.tensor([0.1, 0.5, 0.97]), torch.tensor([0, 1, 2]))
    return v, torch.autograd.grad(v.square().sum(), x_t)[0]


@pytest.mark.parametrize("within", [True, False], ids=["in mixed precision", "outside"])
def test_half_network_is_autocast_bit_for_bit(within: bool, settings: list[str], tmp_path: Path) -> None:
    module, _ = built(settings, tmp_path, "method.teacher_dtype=float32")
    full = unwrap_guidance(module.teacher).requires_grad_(False)
    half = use_bfloat16(deepcopy(full))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = called(full)
    with torch.autocast("cpu", torch.bfloat16, enabled=within, cache_enabled=False):
        ours = called(half)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(ours, expected, strict=True))
    assert not torch.equal(expected[0], called(full)[0])


def test_run_with_a_half_teacher_equals_the_run_without(settings: list[str], tmp_path: Path) -> None:
    runs = []
    for dtype in ("bfloat16", "float32"):
        module, run = built(settings, tmp_path / dtype, *MIXED, f"method.teacher_dtype={dtype}")
        fit(module, run)
        runs.append(module.state_dict())
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())


def test_training_bytes_are_those_of_parameters_moments_and_one_gradient(settings: list[str], tmp_path: Path) -> None:
    module, run = built(settings, tmp_path, *MIXED)
    fit(module, run)
    nets: list[nn.Module] = [module, *module.frozen]
    parameters = {p.data_ptr(): p.numel() * p.element_size() for net in nets for p in net.parameters()}
    states = [state for o in module.trainer.optimizers for state in o.state.values()]
    moments = [m.numel() * m.element_size() for state in states for name, m in state.items() if name != "step"]
    count = sum(p.numel() for p in module.online.parameters())
    assert sum(parameters.values()) + sum(moments) + 4 * count == pipelines.TRAINING_BYTES * count


def test_weights_are_read_once_if_all_networks_start_from_the_teacher(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, load = [], sd3.load_part
    monkeypatch.setattr(sd3, "load_part", lambda *part: reads.append(part) or load(*part))
    built(settings, tmp_path / "teacher")
    assert len(reads) == 1
    built(settings, tmp_path / "random", "method.online_init=random")
    assert len(reads) == 3


@pytest.mark.parametrize(
    "overrides, message",
    [(["trainer.precision=64-true"], "the weights are float64"), (LORA, "adapters.base is the dtype")],
)
def test_half_teacher_that_does_not_fit_is_rejected(
    overrides: list[str], message: str, settings: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(*built(settings, tmp_path, *overrides))
