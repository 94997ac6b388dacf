"""A run whose gradients stop being finite: skipped, counted over resumes, ended in one line, with a good checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fgm.training.descend import PATIENCE
from tiny_runs import Said, refused
from toy_trainings import SCHEDULE, distillation, run, same_bits, whole_and_resumed

from fgm.training.checkpointing import LAST, PREVIOUS, read_cycle
from fgm.training.distillation import Distillation

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
GOOD = 3  # cycles before the trouble
LONG = replace(SCHEDULE, cycles=PATIENCE + 9, save_every=1, log_every=1)


def broken(bad: Any) -> Distillation:
    """The online network's gradient is not finite in the cycles that `bad` says; the generator's always is."""
    module = distillation(schedule=LONG)
    turn = module.online_turn

    def online_turn(x_0: torch.Tensor, condition: Any, index: int) -> Any:
        return turn(x_0 * float("nan") if bad(index) else x_0, condition, index)

    module.online_turn = online_turn  # type: ignore[method-assign]
    return module


def test_many_in_a_row_end_the_run_in_one_line_and_leave_what_was_before_them(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = broken(lambda cycle: cycle >= GOOD)
    line = refused(lambda _: run(module, tmp_path), [], capsys, monkeypatch)
    assert line == (
        f"error: online network: {PATIENCE} non-finite gradients in a row: lower optimizer.lr; "
        f"{tmp_path / LAST}: the one of cycle {GOOD} stays\n"
    )
    assert [read_cycle(tmp_path / path) for path in (LAST, PREVIOUS)] == [GOOD, GOOD - 1]
    assert int(module.cycle) == GOOD + PATIENCE - 1, "the generator went on, and its checkpoints would not be good"
    kept = torch.load(tmp_path / LAST, weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_what_was_skipped_is_counted_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off after one skip; the same count, log and weights as undisturbed."""

    def bad(cycle: int) -> bool:
        return cycle in (2, 6, 7)

    whole, resumed = whole_and_resumed(lambda: broken(bad), tmp_path, monkeypatch, cycle=7)
    assert [d.skipped for d in resumed.descents] == [d.skipped for d in whole.descents] == [0, 3]
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()
    assert same_bits(whole, resumed)


def test_a_row_that_a_stop_cuts_in_two_is_one_row(tmp_path: Path) -> None:
    from fgm.training.descend import Descent

    module, other = broken(lambda cycle: False), broken(lambda cycle: False)
    module.descents[1].skipped, module.descents[1].in_a_row = 30, PATIENCE - 1
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    descent: Descent = other.descents[1]
    assert module.skipping and other.skipping and descent.skipped == 30
    with pytest.raises(Exception, match="20 non-finite"):
        descent.skip()


def test_checkpoints_that_stay_are_gone_back_to(tmp_path: Path) -> None:
    """To one of before the trouble, with what is changed about it; and to the same bits where nothing is."""
    module, again = (distillation(schedule=replace(SCHEDULE, keep_every=3, save_every=5)) for _ in range(2))
    run(module, tmp_path)
    folder = (tmp_path / LAST).parent
    assert sorted(p.name for p in folder.iterdir()) == ["00000003.ckpt", "00000006.ckpt", "last.ckpt", "previous.ckpt"]
    assert [read_cycle(folder / f"0000000{n}.ckpt") for n in (3, 6)] == [3, 6] and read_cycle(tmp_path / LAST) == 8
    (folder / "00000003.ckpt").replace(tmp_path / LAST)
    run(again, tmp_path)
    assert same_bits(module, again)
