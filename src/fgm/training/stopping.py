"""A run that is asked to stop does so at the end of its cycle, saved, with the exit code 75, on all ranks at once.

SIGTERM, SIGUSR1 and Ctrl-C raise a flag, whichever rank they meet; nothing else happens inside a handler, where a
collective call or a save would find networks between two turns. Each cycle ends with the largest flag of all ranks.
75 is sysexits' EX_TEMPFAIL: the same command again goes on. A second signal of the kind is obeyed at once.
"""

import signal
from typing import Any, NoReturn

from rich.console import Console

from fgm.errors import RESUMABLE, SIGNALS
from fgm.evaluation.comm import any_rank
from fgm.training.ranks import comm_of_training


class StopRequest:
    """
    Args:
        console: for the line that says where the run stopped.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.received = console, ""

    def listen(self) -> None:
        """From now on; the trainer puts back what handled the signals before it."""
        for number in SIGNALS:
            signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        del frame
        self.received = signal.Signals(number).name
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def on_any_rank(self) -> bool:
        """Whether some rank was asked to; the same answer on every rank."""
        return any_rank(comm_of_training(), bool(self.received))

    def leave(self, cycle: int) -> NoReturn:
        cause = self.received or "another rank was asked to stop"
        self.console.print(f"{cause}: stopped after cycle {cycle}; the same command again goes on")
        raise SystemExit(RESUMABLE)
