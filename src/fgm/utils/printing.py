"""The console that commands print to."""

import os

from rich.console import Console


def plain_console(quiet: bool = False) -> Console:
    """Return a console without markup, which would take the extra of pip install "fgm[slurm]" for a style."""
    width = (
        80 if os.environ.get("COLUMNS") == "0" else None
    )  # a terminal of unknown width, on which rich prints nothing
    return Console(highlight=False, soft_wrap=True, markup=False, quiet=quiet, width=width)
