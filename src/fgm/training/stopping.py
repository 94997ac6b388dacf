"""A run that is asked to stop does so at the end of its cycle, saved, with the exit code 75, on all ranks at once.

SIGTERM, SIGUSR1 and Ctrl-C raise a flag, whichever rank they meet; nothing else happens inside a handler, where a
collective call or a save would find networks between two turns. Each cycle ends with the largest flag of all ranks.
75 is sysexits' EX_TEMPFAIL: the same command again goes on (torchrun itself ends with 1, and reports 75 of its ranks).
Launchers and queues pass a signal on that its receivers have met already; one that comes GRACE seconds after the first
is meant as a second one, and obeyed at once.
"""

import signal
import time
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from rich.console import Console

from fgm.utils.errors import RESUMABLE, SIGNALS

GRACE = 3.0


class StopRequest:
    """
    Args:
        console: for the line that says where the run stopped.

    Attributes:
        received: the signal's name, once there was one.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.received, self.since = console, "", 0.0

    def listen(self) -> None:
        """From now on; the trainer puts back what handled the signals before it."""
        for number in SIGNALS:
            signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        if not self.received:
            self.received, self.since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self.since > GRACE:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def leave(self, trainer: Trainer, cycle: int) -> NoReturn:
        release(trainer)
        cause = self.received or "another rank was asked to stop"
        self.console.print(f"{cause}: stopped after cycle {cycle}; the same command again goes on")
        raise SystemExit(RESUMABLE)


def release(trainer: Trainer) -> None:
    """Lightning's launcher kills the first rank within 5 s of another's exit code that is not 0; not so from now on."""
    getattr(trainer.strategy.launcher, "procs", []).clear()
