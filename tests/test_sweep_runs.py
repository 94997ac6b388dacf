"""A sweep loses nothing: what is done is not run again, what fails is a row, and a kill leaves the same table."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_sweeps import SILENT, TINY, acted, committed, points_of, rows_of  # noqa: F401

from fgm.analysis.sweeps import studies_of, study_tables
from fgm.cli.studies import point as of_one
from fgm.cli.studies import running
from fgm.cli.studies.points import Point
from fgm.cli.studies.process import Outcome, Processes
from fgm.evaluation.point_metrics import PointMetrics
from fgm.utils.errors import RESUMABLE, UserError
from fgm.utils.records import read_rows

# runs that are acted


def test_one_failure_is_a_row_and_a_second_call_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = points_of(tmp_path, [0, 1]), []
    monkeypatch.setattr(Processes, "run", acted(failing=0.7, ran=ran))
    for _ in range(2):
        running.run_all(made, False, SILENT)
    assert len(ran) == len(rows_of(made)) == 4
    assert [row.get("failed", "") for row in rows_of(made)] == [
        "DivergenceError: generator: 20 non-finite gradients in a row",
        "",
    ] * 2
    assert {row["config_digest"] for row in rows_of(made)} == {point.digest for point in made}
    running.run_all(made, True, SILENT)
    assert [Path(run).name[:21] for run in ran[4:]] == ["mixture_fgm__t_star-0"] * 2, "retry is of those that failed"
    (study,) = studies_of(rows_of(made))
    assert [(len(cell.runs), len(cell.failed)) for cell in study.cells] == [(0, 2), (2, 0)]


def test_when_all_points_failed_or_measured_something_else_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = points_of(tmp_path, [0])[:1]
    monkeypatch.setattr(Processes, "run", acted(failing=0.7))
    with pytest.raises(
        UserError, match=r"all 1 points of toy failed, the first one: DivergenceError: .*log.txt.*retry=true"
    ):
        running.run_all(made, False, SILENT)
    monkeypatch.setattr(Processes, "run", acted(metric="energy"))
    with pytest.raises(UserError, match="does not measure sliced_w2: give metrics=<one of energy>"):
        running.run_all(points_of(tmp_path / "other", [0]), False, SILENT)


def test_a_run_that_an_older_definition_made_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = points_of(tmp_path, [0]), []
    monkeypatch.setattr(Processes, "run", acted(ran=ran))
    running.run_all(made, False, SILENT)
    newer = [Point(p.config | {"study": p.config["study"] | {"sweep_digest": "newer"}}) for p in made]
    known = json.loads((Path(made[0].config["run_dir"]) / "results.json").read_text())
    monkeypatch.setattr(Processes, "run", lambda *_: Outcome(None, False, 0.1))
    running.run_all(newer, False, SILENT)
    assert len(ran) == 2 and [row["sweep_digest"] for row in rows_of(made)[2:]] == ["newer"] * 2
    assert rows_of(made)[2]["results"] == known["results"]


def test_a_teacher_is_trained_once_before_all_points_and_is_no_part_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ran = points_of(tmp_path, [0, 1], "digits_fgm"), []
    monkeypatch.setattr(Processes, "run", acted(ran=ran))
    running.run_all(made, False, SILENT)
    assert ran[0] == f"{tmp_path}/outputs/digits_teacher" and len(ran) == 5
    assert len(rows_of(made)) == 4 and len(read_rows(tmp_path / "experiments/digits_teacher/runs.jsonl")) == 1
    monkeypatch.setattr(Processes, "run", lambda *_: Outcome("error: disk", False, 1.0))
    with pytest.raises(UserError, match=r"the teacher failed: error: disk \(.*digits_teacher/log.txt\)"):
        running.run_all(points_of(tmp_path / "other", [0], "digits_fgm"), False, SILENT)


# processes

SAYS = {
    "print('fine')": None,
    "print('warning: x'); raise FloatingPointError('no')": "FloatingPointError: no",
    "import sys; print('error: give y', file=sys.stderr); sys.exit(2)": "error: give y",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "killed by SIGKILL",
    "import sys; sys.exit(3)": "exit code 3",
}


@pytest.mark.parametrize("code, failed", SAYS.items())
def test_what_became_of_a_process(code: str, failed: str | None, tmp_path: Path) -> None:
    processes = Processes(sys.executable, "-c", code)
    for _ in range(2):
        assert processes.run({"run_dir": str(tmp_path / "run")}).failed == failed


def test_a_signal_is_handed_on_and_the_run_may_finish_its_cycle(tmp_path: Path) -> None:
    code = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit({RESUMABLE})); print('up', flush=True)"
    code += "; time.sleep(60)"
    processes, log = Processes(sys.executable, "-c", code), tmp_path / "log.txt"

    def when_up() -> None:
        while not (log.exists() and log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_up).start()
    outcome = processes.run({"run_dir": str(tmp_path)})
    assert outcome.stopped and outcome.failed is None and outcome.seconds < 30
    with pytest.raises(SystemExit) as stop:
        running.stop_if_asked(outcome)
    assert stop.value.code == RESUMABLE


def test_a_run_stops_when_the_process_that_started_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    (read, write), sent, standard = os.pipe(), [], os.dup(0)
    os.dup2(read, 0)
    try:
        monkeypatch.setattr(of_one.os, "kill", lambda *told: sent.append(told))
        waiting = threading.Thread(target=of_one.stop_with_parent)
        waiting.start()
        assert waiting.is_alive() and not sent
        os.close(write)
        waiting.join(10)
        assert sent == [(os.getpid(), signal.SIGTERM)]
    finally:
        os.dup2(standard, 0)


# the whole, killed


def forked(processes: Processes, command: list[str], log: Any) -> int:
    """code_of, without the seconds that an interpreter of its own takes to import torch."""
    del processes, log
    child = multiprocessing.get_context("fork").Process(target=of_one.main, args=([command[-2]],))
    child.start()
    child.join()
    return child.exitcode or 0


def in_process(made: list[Point]) -> Any:
    def work() -> None:
        torch.set_num_threads(1)
        running.run_all(made, False, SILENT)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def values(made: list[Point]) -> list[str]:
    """The table without its column of seconds."""
    return [line.rpartition(" | ")[0] or line for line in study_tables(rows_of(made))]


def test_killed_half_way_and_started_again_it_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "code_of", forked)
    monkeypatch.setattr(PointMetrics, "reference_values", lambda suite: [])  # seconds a run
    three = (0.5, 0.7, 0.9)
    whole, cut = (points_of(tmp_path / name, [3], "mixture_fgm", *TINY, values=three) for name in ("whole", "cut"))
    undisturbed = in_process(whole)
    undisturbed.join()
    assert undisturbed.exitcode == 0 and len(rows_of(whole)) == 3
    killed = in_process(cut)
    while len(rows_of(cut)) < 1:
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert len(rows_of(cut)) < 3
    again = in_process(cut)
    again.join()
    assert again.exitcode == 0 and len(rows_of(cut)) == 3, "each point has one row"
    assert values(cut) == values(whole) and len(values(whole)) > 6
    assert all(len(row["curves"]["eval/sliced_w2"]) == 2 for row in rows_of(cut))
    assert not list(tmp_path.glob("cut/outputs/toy/*/checkpoints"))
    assert len(list(tmp_path.glob("cut/outputs/toy/*/samples/drawn.png"))) == 3
