"""FSDP2 on two gloo ranks: what one process would train on the full batch, kept and gone on with as under DDP."""

import csv
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import flat, state, weights
from ranks import on_ranks, srun, torchrun
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from two_ranks import FullBatch, FullBatchSetting, distillation, network, run

from fgm.cli.arguments import parse_arguments
from fgm.cli.config import read_recipe
from fgm.training.checkpointing import export_weights
from fgm.training.distillation import Distillation
from fgm.training.distributed import (
    DistributedCopies,
    Shards,
    Single,
    as_shards_of,
    blocks_to_shard,
    gathered,
    local,
    whole,
)
from fgm.utils import errors
from fgm.utils.errors import RESUMABLE, UserError, entry

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
CYCLES = 6


def train(folder: Path, strategy: Any, devices: int, every: int = 0) -> None:
    module = distillation(CYCLES)
    run(module, folder, strategy, devices, every)
    export_weights(module, folder)


def rows(folder: Path) -> list[list[float]]:
    with (folder / "metrics.csv").open() as file:
        return [[float(value) for value in row.values() if value] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same six cycles: one process on the full batch, and two ranks, measured at the third cycle and the last."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("single", "ddp", "fsdp")}
    full_batch = distillation(CYCLES, FullBatchSetting, FullBatch)
    run(full_batch, folders["single"], Single(), 1)
    export_weights(full_batch, folders["single"])
    on_ranks(train, folders["ddp"], DistributedCopies(), 2, 3)
    on_ranks(train, folders["fsdp"], Shards(), 2, 3)
    return folders


def test_fsdp2_is_the_full_batch(engines: dict[str, Path]) -> None:
    """Generator, online network and average after two online turns and a generator turn a cycle, clipped."""
    full_batch, ours, start = weights(engines["single"]), weights(engines["fsdp"]), distillation(CYCLES).state_dict()
    assert full_batch.keys() == ours.keys()
    for name, tensor in full_batch.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    assert all(not torch.equal(start[name], w) for name, w in ours.items() if name.endswith("embed.weight"))


def test_a_checkpoint_is_the_same_file_under_every_strategy(engines: dict[str, Path]) -> None:
    """To the last name and shape; numbers but for the order in which gradients are summed."""
    one, two = flat(state(engines["ddp"])), flat(state(engines["fsdp"]))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)
        elif not name.startswith("/callbacks"):
            assert two[name] == value, name


def test_generator_files_of_all_engines_are_one(engines: dict[str, Path]) -> None:
    one, *others = (load_file(folder / "generator.safetensors") for folder in engines.values())
    for other in others:
        assert list(other) == list(one)
        assert all(torch.allclose(other[name], w, rtol=0, atol=1e-6) for name, w in one.items())
        network(5).load_state_dict(other)


def test_shards_are_measured_and_drawn_as_copies_are(engines: dict[str, Path]) -> None:
    """An average whose shards moved after it was first sampled is sampled as it then is."""
    ours, theirs = rows(engines["fsdp"]), rows(engines["ddp"])
    assert len(ours) == len(theirs) == 5
    assert ours == [pytest.approx(row, rel=1e-4) for row in theirs]
    for folder in (engines["fsdp"], engines["ddp"]):
        assert sorted(p.name for p in (folder / "samples").iterdir()) == ["000003.png", "000006.png"]


@pytest.mark.parametrize("strategy, start", [(Shards(nodes=2), torchrun), (DistributedCopies(nodes=2), srun)])
def test_two_nodes_of_one_device_are_one_node_of_two(
    strategy: Any, start: Any, engines: dict[str, Path], tmp_path: Path
) -> None:
    """As torchrun and SLURM start them."""
    on_ranks(train, tmp_path, strategy, 1, nodes=2, start=start)
    one_node = weights(engines["fsdp" if isinstance(strategy, Shards) else "ddp"])
    assert all(torch.equal(one_node[name], w) for name, w in weights(tmp_path).items())


def told_to_stop(folder: Path) -> None:
    """One rank of the two, in its fourth cycle."""
    module = distillation(CYCLES)
    step = module.training_step

    def training_step(batch: Any) -> None:
        if (int(module.cycle), module.global_rank) == (3, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        step(batch)

    module.training_step = training_step  # type: ignore[method-assign]
    with pytest.raises(SystemExit, match=str(RESUMABLE)):
        run(module, folder, Shards(), 2)


def test_a_stopped_run_goes_on_to_the_same_bits_and_ddp_from_the_same_file(
    engines: dict[str, Path], tmp_path: Path
) -> None:
    on_ranks(told_to_stop, tmp_path / "fsdp")
    assert int(weights(tmp_path / "fsdp")["cycle"]) == 4
    shutil.copytree(tmp_path / "fsdp", tmp_path / "ddp")
    on_ranks(train, tmp_path / "fsdp", Shards(), 2)
    resumed, undisturbed = flat(state(tmp_path / "fsdp")), flat(state(engines["fsdp"]))
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        ours, theirs = ({k: v for k, v in f.items() if k.startswith(f"/{name}")} for f in (resumed, undisturbed))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(v, ours[k]) if isinstance(v, Tensor) else v == ours[k] for k, v in theirs.items())
    on_ranks(train, tmp_path / "ddp", DistributedCopies(), 2)
    for name, tensor in weights(engines["fsdp"]).items():
        torch.testing.assert_close(weights(tmp_path / "ddp")[name], tensor, rtol=0, atol=1e-6)


class NanOnOneRank(Distillation):
    """In the third cycle the second rank draws no numbers."""

    def generate(self, cycle: int) -> tuple[Tensor, None]:
        x_0, _ = super().generate(cycle)
        return (x_0 * float("nan") if (cycle, self.global_rank) == (2, 1) else x_0), None


def skips_on_all_ranks(folder: Path) -> None:
    module = distillation(4, method=NanOnOneRank)
    run(module, folder, Shards(), 2)
    (folder / f"skipped.{module.global_rank}").write_text(f"{[descent.skipped for descent in module.descents]}")
    sharded = [p for net in module.networks() for p in net.parameters()]
    assert len(module.networks()) == 4 and all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in sharded)
    assert 2 * sum(local(p).numel() for p in sharded) == sum(p.numel() for p in sharded)
    assert all(local(p).isfinite().all() for p in sharded)


def test_every_network_is_sharded_and_nan_on_one_rank_is_skipped_on_all(tmp_path: Path) -> None:
    on_ranks(skips_on_all_ranks, tmp_path)
    assert [(tmp_path / f"skipped.{rank}").read_text() for rank in range(2)] == ["[1, 2]", "[1, 2]"]


ROWS = {f"{shape}": torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape) for shape in ((5, 2), (1,), (7,))}


def divides_and_joins(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    mesh, held = init_device_mesh("cpu", (3,)), {}
    for name, tensor in ROWS.items():
        target = distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)])
        held[name] = as_shards_of(target, tensor)
        assert isinstance(held[name], DTensor) and local(held[name]).shape[0] <= -(-len(tensor) // 3)
        assert torch.equal(whole(held[name]), tensor)
    joined = gathered({"deep": [held, {"word": "kept", "own": as_shards_of(None, ROWS["(7,)"])}]})["deep"]
    torch.save(joined, folder / f"joined.{torch.distributed.get_rank()}")


def test_what_three_ranks_hold_of_five_rows_is_put_together(tmp_path: Path) -> None:
    on_ranks(divides_and_joins, tmp_path, world=3)
    first, *others = (torch.load(tmp_path / f"joined.{rank}", weights_only=True) for rank in range(3))
    assert all(torch.equal(first[0][name], tensor) for name, tensor in ROWS.items())
    assert first[1]["word"] == "kept" and torch.equal(first[1]["own"], ROWS["(7,)"])
    assert [set(joined[0].values()) for joined in others] == [{None}, {None}]


def test_a_network_is_sharded_by_its_blocks_or_as_one() -> None:
    net = network(0)
    assert blocks_to_shard(net) == list(net.blocks)
    assert blocks_to_shard(torch.nn.Sequential(torch.nn.Linear(1, 1))) == []


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["method=fgm_lora", "method.adapters.targets=[qkv]"], r"method\.adapters shares one network"),
        (["method=fgm_gan"], r"method\.adversary reads a network at its middle"),
        (["trainer.precision=64-true"], r"trainer\.precision must be 32-true or bf16-mixed"),
        (["training.compile=true"], r"training\.compile is untried with shards"),
        (["training.micro_batches=2"], r"training\.micro_batches would gather"),
        (["training.ema_device=cpu"], r"training\.ema_device is untried with shards"),
    ],
)
def test_what_shards_cannot_do_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=rf"strategy=fsdp: {said}.*; give strategy=ddp$"):
        read_recipe("digits_fgm", ["strategy=fsdp", "trainer.devices=2", *overrides])
    read_recipe("digits_fgm", ["strategy=ddp", "trainer.devices=2", *overrides])


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_several_runs_in_one_process_are_refused(flag: str) -> None:
    with pytest.raises(
        UserError, match=rf"^{flag}: one process is one run.* launcher \(joblib, submitit\) or W&B's agents"
    ):
        parse_arguments([flag, "experiment=digits_fgm", "seed=0,1"])


@pytest.mark.parametrize("rank, said", [(0, "error: no"), (3, "error on rank 3: no")])
def test_what_one_rank_refuses_it_says(rank: int, said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors.sys, "argv", ["train"])
    monkeypatch.setenv("RANK", str(rank))

    def refuses(arguments: list[str]) -> None:
        raise UserError("no")

    with pytest.raises(SystemExit, match="2"):
        entry(refuses, None)
    assert capsys.readouterr().err == f"{said}\n"
