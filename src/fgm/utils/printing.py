"""The console that commands print to."""

from rich.console import Console


def plain_console(quiet: bool = False) -> Console:
    """Return a console without markup, which would take the extra of pip install -e '.[slurm]' for a style."""
    return Console(highlight=False, soft_wrap=True, markup=False, quiet=quiet)
