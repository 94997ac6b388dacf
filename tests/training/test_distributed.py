"""DDP and FSDP2 on two gloo ranks train what one process would on the full batch, and share checkpoints."""

import csv
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks, srun, torchrun
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from toy_trainings import flat, last_state, last_step, last_weights
from two_ranks import FullBatch, distillation, network, run

from fgm.training.callbacks import checksum
from fgm.training.checkpointing import export_weights
from fgm.training.distillation import Distillation
from fgm.training.distributed import DDP, FSDP, SINGLE, as_shards_of, blocks_to_shard, full_tensor, gather_state, local
from fgm.utils.errors import RESUMABLE, UserError

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
STEPS = 6


def train(folder: Path, strategy: Any, devices: int, every: int = 0, method: Any = Distillation) -> None:
    module = distillation(STEPS, method)
    run(module, folder, strategy, devices, every)
    export_weights(module, folder)


def rows(folder: Path) -> list[list[float]]:
    with (folder / "metrics.csv").open() as file:
        return [[float(value) for value in row.values() if value] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same six steps: one process on the full batch, and two ranks, measured at the third step and the last."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("single", "ddp", "fsdp")}
    train(folders["single"], SINGLE, 1, method=FullBatch)
    on_ranks(train, folders["ddp"], DDP(), 2, 3)
    on_ranks(train, folders["fsdp"], FSDP(), 2, 3)
    return folders


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_equal_the_full_batch(name: str, folders: dict[str, Path]) -> None:
    """Generator, online network and average after two online updates and a generator update a step, clipped."""
    full_batch, ours, start = (*map(last_weights, (folders["single"], folders[name])), distillation(STEPS).state_dict())
    assert full_batch.keys() == ours.keys()
    for weight, tensor in full_batch.items():
        torch.testing.assert_close(ours[weight], tensor, rtol=0, atol=1e-6)
    assert all(not torch.equal(start[weight], w) for weight, w in ours.items() if weight.endswith("embed.weight"))
    exported, other = (load_file(folder / "generator.safetensors") for folder in (folders["single"], folders[name]))
    assert list(exported) == list(other)
    assert all(torch.allclose(other[weight], w, rtol=0, atol=1e-6) for weight, w in exported.items())
    network(5).load_state_dict(other)


def test_checkpoint_has_the_same_names_and_shapes_under_ddp_and_fsdp(folders: dict[str, Path]) -> None:
    one, two = flat(last_state(folders["ddp"])), flat(last_state(folders["fsdp"]))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)
        elif not name.startswith("/callbacks"):
            assert two[name] == value, name


def test_rank_0_writes_the_same_log_and_pictures_under_ddp_and_fsdp(folders: dict[str, Path]) -> None:
    """An average whose shards moved after it was first sampled is sampled as it is then."""
    ours, theirs = rows(folders["fsdp"]), rows(folders["ddp"])
    assert len(ours) == len(theirs) == 5 and 2 * 8 * STEPS in theirs[-1]
    assert ours == [pytest.approx(row, rel=1e-4) for row in theirs]
    for folder in (folders["fsdp"], folders["ddp"]):
        assert sorted(p.name for p in (folder / "samples").iterdir()) == ["000003.png", "000006.png"]


@pytest.mark.parametrize("strategy, start", [(FSDP(nodes=2), torchrun), (DDP(nodes=2), srun)])
def test_two_nodes_of_one_device_equal_one_node_of_two(
    strategy: Any, start: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    on_ranks(train, tmp_path, strategy, 1, nodes=2, start=start)
    one_node = last_weights(folders["fsdp" if isinstance(strategy, FSDP) else "ddp"])
    assert all(torch.equal(one_node[name], w) for name, w in last_weights(tmp_path).items())


def stop_one_rank(folder: Path, strategy: Any) -> None:
    """In its fourth step."""
    module = distillation(STEPS)
    step = module.training_step

    def training_step(batch: Any) -> None:
        if (int(module.step), module.global_rank) == (3, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        step(batch)

    module.training_step = training_step  # type: ignore[method-assign]
    with pytest.raises(SystemExit, match=str(RESUMABLE)):
        run(module, folder, strategy, 2)


@pytest.mark.parametrize("name, strategy", [("ddp", DDP()), ("fsdp", FSDP())])
def test_resume_on_two_ranks_is_bit_exact(name: str, strategy: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    on_ranks(stop_one_rank, tmp_path / name, strategy)
    assert last_step(tmp_path / name) == 4
    shutil.copytree(tmp_path / name, tmp_path / "other")
    on_ranks(train, tmp_path / name, strategy, 2)
    resumed, undisturbed = flat(last_state(tmp_path / name)), flat(last_state(folders[name]))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        ours, theirs = ({k: v for k, v in f.items() if k.startswith(f"/{part}")} for f in (resumed, undisturbed))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(v, ours[k]) if isinstance(v, Tensor) else v == ours[k] for k, v in theirs.items())
    if name == "fsdp":  # and DDP from the same file
        on_ranks(train, tmp_path / "other", DDP(), 2)
        for weight, tensor in last_weights(folders["fsdp"]).items():
            torch.testing.assert_close(last_weights(tmp_path / "other")[weight], tensor, rtol=0, atol=1e-6)


class NanOnOneRank(Distillation):
    """In the third step the second rank's online loss is not a number."""

    def online_update(self, x_0: Tensor, condition: Any, index: int) -> Any:
        broken = (int(self.step), self.global_rank) == (2, 1)
        return super().online_update(x_0 * float("nan") if broken else x_0, condition, index)


def skips_on_all_ranks(folder: Path) -> None:
    module = distillation(4, method=NanOnOneRank)
    run(module, folder, FSDP(), 2)
    (folder / f"skipped.{module.global_rank}").write_text(f"{module.skipped}")
    sharded = [p for net in module.networks() for p in net.parameters()]
    assert len(module.networks()) == 4 and all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in sharded)
    assert 2 * sum(local(p).numel() for p in sharded) == sum(p.numel() for p in sharded)
    assert all(local(p).isfinite().all() for p in sharded)


def test_every_network_is_sharded_and_nan_on_one_rank_is_skipped_on_all(tmp_path: Path) -> None:
    on_ranks(skips_on_all_ranks, tmp_path)
    skipped = [(tmp_path / f"skipped.{rank}").read_text() for rank in range(2)]
    assert skipped == ["{'online': [2, 0], 'generator': [0, 0]}"] * 2


def other_weights(folder: Path) -> None:
    """Rank 1's generator leaves the others' in the second step, which DDP does not notice."""
    module = distillation(4)
    step = module.training_step

    def training_step(batch: Any) -> None:
        step(batch)
        if (int(module.step), module.global_rank) == (2, 1):
            next(module.generator.parameters()).data.view(-1)[0] += 1e-6

    module.training_step = training_step  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="step 2: the ranks' weights differ"):
        run(module, folder, DDP(), 2)


def test_replicas_with_different_weights_stop_the_run(tmp_path: Path) -> None:
    on_ranks(other_weights, tmp_path)
    a, b = torch.randn(5), torch.randn(5)
    c = a.clone()
    c.view(torch.uint8)[7] ^= 1
    assert checksum([a, b]) == checksum([a.clone(), b.clone()])
    assert len({checksum(pair) for pair in ([a, b], [b, a], [c, b])}) == 3


ROWS = {f"{shape}": torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape) for shape in ((5, 2), (1,), (7,))}


def shard_and_gather(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    mesh, shards = init_device_mesh("cpu", (3,)), {}
    for name, tensor in ROWS.items():
        target = distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)])
        shards[name] = as_shards_of(target, tensor)
        assert isinstance(shards[name], DTensor) and local(shards[name]).shape[0] <= -(-len(tensor) // 3)
        assert torch.equal(full_tensor(shards[name]), tensor)
    gathered = gather_state({"deep": [shards, {"word": "kept", "own": as_shards_of(None, ROWS["(7,)"])}]})["deep"]
    torch.save(gathered, folder / f"gathered.{torch.distributed.get_rank()}")


def test_state_sharded_over_three_ranks_is_gathered_on_rank_0(tmp_path: Path) -> None:
    on_ranks(shard_and_gather, tmp_path, world=3)
    first, *others = (torch.load(tmp_path / f"gathered.{rank}", weights_only=True) for rank in range(3))
    assert all(torch.equal(first[0][name], tensor) for name, tensor in ROWS.items())
    assert first[1]["word"] == "kept" and torch.equal(first[1]["own"], ROWS["(7,)"])
    assert [set(gathered[0].values()) for gathered in others] == [{None}, {None}]


def test_network_is_sharded_by_its_blocks_or_as_one() -> None:
    net = network(0)
    assert blocks_to_shard(net) == list(net.blocks)
    assert blocks_to_shard(torch.nn.Sequential(torch.nn.Linear(1, 1))) == []


def test_several_devices_need_a_strategy() -> None:
    with pytest.raises(UserError, match=r"trainer.devices = 2 needs a strategy for several: give strategy=ddp"):
        SINGLE.build(2)
