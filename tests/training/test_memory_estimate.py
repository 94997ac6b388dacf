"""The memory estimate on fake tensors equals real allocations, and Stable Diffusion 3 is as counted by hand."""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN
from tiny_runs import Said
from tiny_sd3 import SIZE, TRANSFORMER
from torch import Tensor, nn
from toy_trainings import CONFIG, pieces

import fgm.cli.memory
from benchmarks import cycle
from fgm.cli.build import build_module
from fgm.cli.config import compose_experiment
from fgm.cli.memory import BlankData, ByteMoments, without_files
from fgm.cli.table import tables
from fgm.data.encodings import CLIP_LENGTH
from fgm.networks import VelocityModel
from fgm.networks.dit import DiT
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.networks.lora import LoRA
from fgm.networks.mixed_precision import use_bfloat16
from fgm.networks.sd3 import architecture, untrained
from fgm.teachers import require_models
from fgm.training.distillation import Distillation
from fgm.training.memory_estimate import (
    RESERVED,
    GPUKernels,
    MemoryTracker,
    estimate_memory,
    fake_tensors,
    register,
    run_two_cycles,
)
from fgm.training.optim import adam
from fgm.utils.errors import UserError
from fgm.utils.pipelines import SD3_MEDIUM
from fgm.utils.records import read_rows

os.environ["HF_HUB_OFFLINE"] = "1"


class Words(nn.Module):
    """Encodings of the width and length that a transformer reads."""

    def __init__(self, tokens: int, shape: dict[str, Any]) -> None:
        super().__init__()
        self.tokens, self.shape = tokens, shape

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n, width, pooled = len(condition), self.shape["joint_attention_dim"], self.shape["pooled_projection_dim"]
        return torch.zeros(n, self.tokens, width), torch.zeros(n, pooled)


def saved_for_backward(work: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps when work is done, each storage once and those of weights left out."""
    own = {tensor.untyped_storage()._cdata for tensor in weights}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return total


def graph_of(net: VelocityModel, n: int, trained: bool) -> int:
    """Bytes that a call keeps for its backward."""
    net.requires_grad_(trained)
    x_t, t = torch.zeros(n, *net.shape, requires_grad=True), torch.zeros(n)
    return saved_for_backward(
        lambda: net(x_t, t, torch.zeros(n, dtype=torch.int64)), [*net.parameters(), *net.buffers()]
    )


@pytest.mark.parametrize("trained", [True, False])
def test_fake_graph_has_the_size_of_the_real_one(trained: bool) -> None:
    """Counted by hooks on what autograd saves, on real tensors with the CPU's own attention: equal to 1 %."""
    shape = TRANSFORMER | {"attention_head_dim": 16, "caption_projection_dim": 32}
    real = graph_of(untrained(shape, Words(20, shape), SIZE), 8, trained)
    with fake_tensors(), GPUKernels():
        assert graph_of(untrained(shape, Words(20, shape), SIZE), 8, trained) == pytest.approx(real, rel=0.01)


def test_stable_diffusion_3_at_512_pixels_is_as_counted_by_hand() -> None:
    """2.03 billion weights; in bf16 a graph of 1.12 GiB a sample where weights get no gradients.

    Halving what float32 takes gives 0.93 GiB, 17 % less: norms run in float32 under autocast and keep their inputs so.
    """
    with fake_tensors(), GPUKernels():
        shape = architecture(SD3_MEDIUM)
        net = untrained(shape, Words(333, shape), 512)
        floats, halves = graph_of(net, 2, False) / 2, graph_of(use_bfloat16(net), 2, False) / 2
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(2.028e9, rel=0.001)
    assert halves / 2**30 == pytest.approx(1.12, rel=0.01)
    assert floats / 2 / 2**30 == pytest.approx(0.932, rel=0.01)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two stages": {"low_memory": True, "online_steps": 2},
    "guided": {"guidance": "long_and_short"},
    "adapters": {"adapters": LoRA(rank=4, targets=["qkv", "out"])},
    "a discriminator": {"discriminator": partial(GAN, r1_weight=0.5)},
    "several steps": {"steps": 2},
}


def dit(seed: int = 0) -> DiT:
    torch.manual_seed(seed)
    return DiT(8, width=32, depth=2, num_classes=10)


PLAIN, DTYPES = partial(adam, lr=1e-3), ("float32", "bfloat16")


def module(optimizer: Any = PLAIN, **options: Any) -> Distillation:
    changes = {name: options.pop(name) for name in ("micro_batches", "ema_device", "ema_extra") if name in options}
    config, data = replace(CONFIG, batch_size=16, **changes), BlankData([1, 8, 8], 10, [])
    parts = pieces(config=config, data=data, network=partial(dit, 1), optimizer=optimizer)
    return Distillation(**parts | {"teacher": ClassifierFreeGuidance(dit(), 2.0), "t_star": 0.9} | options)


def real_peak(made: Any) -> dict[str, int]:
    """Of the same two cycles on real tensors."""
    with MemoryTracker() as tracker, GPUKernels():
        register(tracker, made, ddp=False)
        run_two_cycles(tracker, made)
    return tracker.peak


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_estimate_equals_the_peak_of_the_same_cycles_on_real_tensors(options: dict[str, Any]) -> None:
    estimate, peak = estimate_memory(lambda: module(**options), "32-true"), real_peak(module(**options))
    assert estimate.total == pytest.approx(sum(n for kind, n in peak.items() if kind != "host"), rel=0.05)
    assert (estimate.weights, estimate.optimizer) == (peak["weights"], peak["optimizer"])


def test_weights_moments_and_gradients_are_those_of_four_networks() -> None:
    """Teacher, generator, online network and average; two moments of what is trained; DDP keeps both gradients."""
    p, table = sum(p.numel() for p in dit().parameters()), sum(b.numel() for b in dit().buffers())
    estimate = estimate_memory(module, "32-true", ddp=True)
    steps = 4 * 2 * len(list(dit().parameters()))  # a count beside each tensor's moments
    assert estimate.weights == 4 * 4 * (p + table)
    assert (estimate.gradients, estimate.optimizer) == (2 * 4 * p, 4 * 4 * p + steps)


def test_memory_options_save_the_bytes_that_they_promise() -> None:
    p, plain = sum(p.numel() for p in dit().parameters()), estimate_memory(module, "32-true")
    table = sum(b.numel() for b in dit().buffers())
    assert plain.weights - estimate_memory(lambda: module(ema_device="cpu"), "32-true").weights == 4 * (p + table)
    extra = [
        estimate_memory(lambda on=on: module(ema_extra=(0.5, 1.0), ema_device=on), "32-true") for on in ("same", "cpu")
    ]
    assert [e.weights - plain.weights for e in extra] == [2 * 4 * (p + table), -4 * (p + table)]
    eight = estimate_memory(lambda: module(lambda net: ByteMoments(list(net.parameters()), {"lr": 1.0})), "32-true")
    large = sum(p.numel() for p in dit().parameters() if p.numel() >= 4096)
    assert eight.optimizer == 2 * ((2 + 8 / 256) * large + 8 * (p - large))
    mixed = [estimate_memory(lambda dtype=dtype: module(teacher_dtype=dtype), "bf16-mixed").weights for dtype in DTYPES]
    matrices = sum(m.weight.numel() + m.bias.numel() for m in dit().modules() if isinstance(m, nn.Linear | nn.Conv2d))
    assert mixed[0] - mixed[1] == 2 * matrices


def test_fused_step_makes_no_copy_of_the_weights() -> None:
    """Where the step is the peak, as with adapters and small batches of large networks."""

    def peak(kernel: Any) -> int:
        net, tracker = nn.Linear(1000, 1000), MemoryTracker()
        optimizer = adam(net, lr=1e-3, kernel=kernel)
        for group in optimizer.param_groups:
            group["fused"] = kernel == "fused" or None
            group["foreach"] = None if kernel == "fused" else True
        with tracker:
            for _ in range(2):
                net(torch.ones(1, 1000)).sum().backward()
                tracker.reset_peak()
                optimizer.step()
                optimizer.zero_grad()
        return tracker.peak_total - 3 * 4 * 1_001_000

    assert peak("auto") >= 4 * 1_001_000 and peak("fused") < 1e5


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A diffusers directory with a shape and no weights."""
    (tmp_path / "model" / "transformer").mkdir(parents=True)
    content = TRANSFORMER | {"_class_name": "SD3Transformer2DModel"}
    (tmp_path / "model" / "transformer" / "config.json").write_text(json.dumps(content))
    return tmp_path / "model"


def tiny(model: Path) -> list[str]:
    return [
        f"network.model={model}", f"network.size={SIZE}", "network.random_init=true", "data.cache.max_length=24",
        "training.batch_size=2", "method.teacher_steps=2", "trainer.accelerator=cpu", "logger=csv",
        f"experiments={model.parent}", f"outputs={model.parent}/outputs",
    ]  # fmt: skip


@pytest.mark.parametrize("experiment", ["sd3_fgm", "sd3_fgm_lora"])
def test_random_weights_are_benched_without_any_file(experiment: str, model: Path) -> None:
    """The command of a GPU, at a tiny size: its row has what is to be known of every experiment."""
    cycle.main([f"experiment={experiment}", *tiny(model), "cycles=1", "repetitions=1"])
    row = json.loads((model.parent / "bench" / "runs.jsonl").read_text())
    values = {result["metric"]: result["value"] for result in row["results"]}
    wanted = {"cycle_over_bare", "cycle_over_naive", "images_per_s", "tflop_per_image", "sample_speedup"}
    assert wanted <= values.keys() and row["experiment"] == experiment
    assert all(value > 0 for value in values.values())


def test_prompts_are_counted_at_their_own_length(model: Path) -> None:
    config = without_files(compose_experiment("sd3_fgm", tiny(model)))
    module: Any = build_module(config)
    words, pooled = module.online.text(module.data.conditions(2, torch.Generator()))
    assert words.shape == (2, CLIP_LENGTH + 24, TRANSFORMER["joint_attention_dim"]) and len(pooled) == 2


def test_data_that_are_not_there_are_one_line() -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        without_files(compose_experiment("cifar10_fgm_gan", ["data=image_folder", "data.directory=nowhere"]))


def test_training_on_random_weights_and_unknown_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="random weights are for benchmarks and make memory"):
        require_models({"_target_": "fgm.networks.sd3.pretrained", "random_init": True})
    with pytest.raises(UserError, match="its shape is not known"):
        architecture("somebody/else")


SHALLOW = ["network.depth=1", 'teacher.overrides=["network.depth=1"]']


def test_the_command_names_the_gpus_that_hold_it_and_ddp_adds_buckets_of_gradients(capsys: Said, model: Path) -> None:
    for strategy in ("single", "ddp"):
        fgm.cli.memory.main(["experiment=digits_fgm", *SHALLOW, f"strategy={strategy}"])
    said = capsys.readouterr().out
    assert said.count("fits on RTX 3060 (12 GiB)") == 2
    single, ddp = map(float, re.findall(r"gradients *│ ([\d.]+)", said))
    assert ddp > single
    fgm.cli.memory.main(
        ["experiment=sd3_fgm_lora", *tiny(model), "optimizer.kernel=eight_bit", "training.micro_batches=2"]
    )
    said = capsys.readouterr().out
    assert "batch 2 a device, in 2 parts, with gradient checkpointing" in said and "fits on RTX 3060" in said
    fgm.cli.memory.main(["experiment=digits_fgm", *SHALLOW, "training.batch_size=10000000"])
    assert "fits on no GPU that is known" in capsys.readouterr().out


def test_recorded_estimate_is_the_printed_one(capsys: Said, tmp_path: Path) -> None:
    places = ["record=true", f"experiments={tmp_path}"]
    fgm.cli.memory.main(["experiment=digits_fgm", *SHALLOW, "training.batch_size=32", *places])
    (row,) = read_rows(tmp_path / "memory" / "runs.jsonl")
    values = {m["metric"]: m["value"] for m in row["results"]}
    assert f"│ total       │ {values['total_gib']:.3g}" in capsys.readouterr().out
    assert values["gpu_gib"] == pytest.approx(RESERVED * values["total_gib"] + 1)
    text = tables(["memory"], tmp_path, [])
    assert f"training.batch_size=32 | 32 | {values['weights_gib']:.3g} |" in text


@pytest.mark.parametrize("arguments", [["experiment=digits_teacher"], ["strategy=fsdp", "trainer.devices=2"]])
def test_only_distillations_on_devices_that_hold_everything_are_counted(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="counted"):
        fgm.cli.memory.main(arguments)
