"""Runs, each in a process of its own, and what became of them."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fgm.cli.runs import write_yaml
from fgm.utils.errors import RESUMABLE, SIGNALS

INTERRUPTED = 130
LOG = "log.txt"
COMPLAINT = re.compile(r"^(error|[\w.]*(Error|Exception|DivergenceError|Interrupt|Exit|Warning)): ")


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        failed: why, in a line, or None.
        stopped: whether the run was asked to stop, and can go on.
        seconds: wall time.
    """

    failed: str | None
    stopped: bool
    seconds: float


class Processes:
    """Starts runs one after another, hands signals to the one that runs, and then says that it was stopped.

    Args:
        command: to which a run's config.yaml is added.
    """

    def __init__(self, *command: str) -> None:
        self.command = command or (sys.executable, "-m", "fgm.cli.studies.point")
        self.child: subprocess.Popen[bytes] | None = None
        self.running = self.stopping = False
        for number in SIGNALS:
            signal.signal(number, self.stop)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The run saves at the end of its cycle; without one there is nothing to wait for."""
        del number, frame
        self.stopping = True
        if not self.running:
            sys.exit(RESUMABLE)
        if self.child:
            self.child.terminate()

    def run(self, config: dict[str, Any]) -> Outcome:
        """One config to its end; what it says goes to log.txt in its run directory."""
        began, run_dir = time.perf_counter(), Path(config["run_dir"])
        run_dir.mkdir(parents=True, exist_ok=True)
        write_yaml(config, run_dir / "config.yaml")
        command = [*self.command, str(run_dir / "config.yaml"), "tied"]
        with (run_dir / LOG).open("ab") as log:
            start, code = log.tell(), self.code_of(command, log)
        stopped = self.stopping or code in (RESUMABLE, INTERRUPTED)
        failed = None if code == 0 or stopped else reason(run_dir / LOG, start, code)
        return Outcome(failed, stopped, time.perf_counter() - began)

    def code_of(self, command: list[str], log: Any) -> int:
        """In a session of its own: a terminal's Ctrl-C reaches it through stop() alone."""
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.running = True
        with subprocess.Popen[bytes](command, **streams, start_new_session=True, env=environment) as self.child:
            if self.stopping:  # asked to while it was being started
                self.child.terminate()
            code = self.child.wait()
        self.child, self.running = None, False
        return code


def reason(log: Path, start: int, code: int) -> str:
    """The last line of what was said that complains, or the signal that ended the run."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    said = [line for line in log.read_bytes()[start:].decode(errors="replace").splitlines() if line.strip()]
    complaints = [line for line in said if COMPLAINT.match(line)]
    return (complaints or said or [f"exit code {code}"])[-1].strip()
