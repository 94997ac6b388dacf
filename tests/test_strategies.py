"""Two gloo ranks train what one process would on the full batch, write once, and end and go on as one."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from killed_runs import weights
from two_ranks import FullBatch, FullBatchSetting, distillation, run

from fgm.cli.config import digest, read_recipe
from fgm.training.checkpointing import LAST
from fgm.training.distributed import Single, checksum
from fgm.utils.errors import RESUMABLE, UserError

SCRIPT, CYCLES = Path(__file__).with_name("two_ranks.py"), 6


def start(folder: Path, *arguments: object, under: Sequence[str] = ()) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, *under, str(SCRIPT), str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ddp")
    said = start(folder, "ddp", CYCLES, "measured").communicate(timeout=120)[0]
    assert (folder / LAST).exists(), said
    return folder, said


def test_ddp_is_the_full_batch(on_two_ranks: tuple[Path, str], tmp_path: Path) -> None:
    """Generator, online network and average, after cycles of two online turns and a generator turn."""
    run(distillation(CYCLES, FullBatchSetting, FullBatch), tmp_path, Single(), 1)
    whole, ours = weights(tmp_path), weights(on_two_ranks[0])
    start = distillation(CYCLES).state_dict()
    assert whole.keys() == ours.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    assert all(not torch.equal(start[name], w) for name, w in ours.items() if name.endswith("embed.weight"))


def test_one_rank_speaks_and_writes_for_both(on_two_ranks: tuple[Path, str]) -> None:
    folder, said = on_two_ranks
    assert said.count(f"cycle {CYCLES}/{CYCLES}") == 1 and said.count("cycle 3: one step, ema, n = 64") == 1
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == len(set(rows)) and f"{float(2 * 8 * CYCLES)}" in rows[-1]
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["000003.png", "000006.png"]


def test_a_resumed_ddp_run_is_bit_equal(on_two_ranks: tuple[Path, str], tmp_path: Path) -> None:
    process = start(tmp_path, "ddp", 25, "slow")
    assert process.stdout
    pids: list[int] = []
    for line in process.stdout:
        if re.match(r"rank 1 cycle 5", line):
            pids = children(process.pid)
            break
    os.kill(pids[0], signal.SIGTERM)  # one rank of the two
    assert process.communicate(timeout=120)[0].count("stopped after cycle") == 1, "one rank speaks"
    assert process.returncode == RESUMABLE
    start(tmp_path, "ddp", 25).communicate(timeout=120)
    start(tmp_path / "whole", "ddp", 25).communicate(timeout=120)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path)
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_checksum_sees_every_bit_and_every_place() -> None:
    a, b = torch.randn(5), torch.randn(5)
    assert checksum([a, b]) == checksum([a.clone(), b.clone()]) != checksum([b, a])
    c = a.clone()
    c.view(torch.uint8)[7] ^= 1
    assert checksum([a, b]) != checksum([c, b])


def test_what_cannot_be_spread_is_refused() -> None:
    with pytest.raises(UserError, match=r"trainer.devices = 2 needs a strategy for several: give strategy=ddp"):
        Single().engine(2)


def test_one_device_goes_without_saying_in_the_digest() -> None:
    config = read_recipe("digits_fgm", [])
    assert digest(config) == digest({key: value for key, value in config.items() if key != "strategy"})
    assert digest(config) != digest(read_recipe("digits_fgm", ["strategy=ddp", "trainer.devices=2"]))
