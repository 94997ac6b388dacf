"""Nothing that ends a run changes what it comes to: kills, signals, damaged files and full disks."""

import errno
import io
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import child, flat, killed, moments, paced, run, state, tiny_config
from rich.console import Console

from fgm.training.checkpointing import LAST, PREVIOUS, AtomicCheckpointIO, damage, last_checkpoint
from fgm.utils.errors import RESUMABLE, UserError

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def weights_and_optimizers(run_dir: Path) -> dict[str, Any]:
    kept = state(run_dir)
    return flat({key: kept[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")})


def assert_bit_equal(a: Path, b: Path) -> None:
    ours, theirs = weights_and_optimizers(a), weights_and_optimizers(b)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not same(ours[key], theirs[key])] == []
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()


def test_a_run_killed_at_twenty_moments_ends_bit_equal(tmp_path: Path) -> None:
    """SIGKILL, wherever it meets the run: many of its moments are spent in writing a checkpoint, one each cycle."""
    cycles = 200
    opening, cycle = paced(tiny_config(tmp_path / "whole", cycles), cycles)
    config, reached = tiny_config(tmp_path / "killed", cycles), []
    for delay, after_checkpoint in moments(20, opening, cycle):
        assert killed(config, delay, after_checkpoint), "the run must be long enough to be killed twenty times"
        reached.append(last_checkpoint(tmp_path / "killed", Console(file=io.StringIO()))[1])
    assert reached == sorted(reached) and len(set(reached)) >= 15 and reached[-1] < cycles
    child(run, config).join()
    assert_bit_equal(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_a_run_saved_with_75_and_the_same_run_goes_on(number: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "stopped", 60, "training.save_every_n_steps=1000")
    process = child(run, config)
    said = tmp_path / "stopped" / "said.txt"
    while not (said.exists() and "cycle 10/" in said.read_text()):
        time.sleep(0.01)
    asked = time.perf_counter()
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == RESUMABLE and time.perf_counter() - asked < 10
    assert f"{signal.Signals(number).name}: stopped after cycle" in said.read_text()
    child(run, config).join()
    child(run, tiny_config(tmp_path / "whole", 60, "training.save_every_n_steps=1000")).join()
    assert_bit_equal(tmp_path / "whole", tmp_path / "stopped")


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> Path:
    io_ = AtomicCheckpointIO(Console(file=io.StringIO()))
    for cycle in (1, 2):
        held = {"state_dict": {"cycle": torch.tensor(cycle), "w": torch.full((500,), float(cycle))}}
        io_.save_checkpoint(held, tmp_path / LAST)
    assert last_checkpoint(tmp_path, Console(file=io.StringIO())) == (tmp_path / LAST, 2)
    return tmp_path


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_is_found_or_does_no_harm(two_checkpoints: Path) -> None:
    last = two_checkpoints / LAST
    raw, whole = last.read_bytes(), state(two_checkpoints)["state_dict"]
    start = raw.index(torch.full((500,), 2.0).numpy().tobytes())
    draw, found = random.Random(0), 0
    for bit in [*(draw.randrange(8 * len(raw)) for _ in range(100)), *range(8 * start, 8 * (start + 2000), 400)]:
        last.write_bytes(flipped(raw, bit))
        if damage(last):
            found += 1
        else:
            assert not 8 * start <= bit < 8 * (start + 2000)
            assert all(torch.equal(whole[name], w) for name, w in state(two_checkpoints)["state_dict"].items())
    assert found > 60


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_it(two_checkpoints: Path) -> None:
    last, previous, said = two_checkpoints / LAST, two_checkpoints / PREVIOUS, io.StringIO()
    raw = last.read_bytes()
    last.write_bytes(raw[: len(raw) // 2])
    assert last_checkpoint(two_checkpoints, Console(file=said, soft_wrap=True)) == (previous, 1)
    assert said.getvalue() == f"warning: {last} is damaged (BadZipFile): going on from {previous}\n"
    kept = previous.read_bytes()
    third = {"state_dict": {"cycle": torch.tensor(3)}}
    AtomicCheckpointIO(Console(file=said), trusted=False).save_checkpoint(third, last)
    assert previous.read_bytes() == kept, "a damaged file must not take the whole one's place"
    previous.write_bytes(b"")
    last.unlink()
    with pytest.raises(UserError, match=r"previous\.ckpt cannot be read"):
        last_checkpoint(two_checkpoints, Console(file=said))


def test_a_full_disk_costs_a_warning_and_leaves_both_checkpoints_whole(two_checkpoints: Path) -> None:
    before, said = [(two_checkpoints / p).read_bytes() for p in (LAST, PREVIOUS)], io.StringIO()

    def save_under_limit(path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        checkpoint = {"state_dict": {"cycle": torch.tensor(3), "w": torch.zeros(10_000)}}
        AtomicCheckpointIO(Console(file=said, soft_wrap=True)).save_checkpoint(checkpoint, path)
        os._exit(0 if "(File too large): the one of cycle 2 stays; free some space" in said.getvalue() else 1)

    process = multiprocessing.get_context("fork").Process(target=save_under_limit, args=(two_checkpoints / LAST,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [(two_checkpoints / p).read_bytes() for p in (LAST, PREVIOUS)] == before
    assert sorted(p.name for p in (two_checkpoints / LAST).parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_only_the_disk_is_forgiven(two_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fails)
    ours, error = AtomicCheckpointIO(Console(file=io.StringIO())), OSError(errno.ENOSPC, "No space left on device")
    ours.save_checkpoint({}, two_checkpoints / LAST)
    error = RuntimeError("CUDA error")  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="CUDA error"):
        ours.save_checkpoint({}, two_checkpoints / LAST)
    assert not damage(two_checkpoints / LAST)
