"""What commands print with."""

from rich.console import Console


def plain_console(quiet: bool = False) -> Console:
    """Text as it is: markup would take the extra of pip install -e '.[slurm]' for a style, and fail at a [/path]."""
    return Console(highlight=False, soft_wrap=True, markup=False, quiet=quiet)
