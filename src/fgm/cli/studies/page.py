"""A study's page in experiments/: question, command, plots and table are made; finding and verdict are written by hand.

<!-- by hand -->
**Finding.** ...          what stands between these marks is kept
<!-- by hand: end -->
"""

import re
from pathlib import Path

from fgm.cli.studies.definition import Sweep

MARKS = ("<!-- by hand -->\n", "<!-- by hand: end -->\n")
BY_HAND = re.compile(f"{re.escape(MARKS[0])}(.*?){re.escape(MARKS[1])}", re.S)
UNWRITTEN = "**Finding.** Not written yet.\n\n**Verdict.** Not written yet.\n"


def by_hand(path: Path) -> str:
    """The finding and the verdict as they stand in a page, if there is one."""
    found = BY_HAND.search(path.read_text()) if path.exists() else None
    return found[1] if found else UNWRITTEN


def page_of(sweep: Sweep, pictures: dict[str, dict[str, Path]], found: str) -> str:
    """With an empty table, for fgm.cli.table to fill.

    Args:
        pictures: recipe -> title -> file, in the page's own folder.
        found: finding and verdict.
    """
    shown = [
        f"![{title} of {recipe}]({file.name})\n" for recipe, files in pictures.items() for title, file in files.items()
    ]
    commands = [
        f"`make sweep {'' if recipe == sweep.experiment else f'EXP={recipe} '}SWEEP={sweep.name}`"
        for recipe in pictures
    ]
    page = [
        f"# {sweep.name}\n", f"**Question.** {sweep.question}\n",
        f"**Command.** {', '.join(commands)}; `make report SWEEP={sweep.name}` makes this page\n",
        MARKS[0] + found + MARKS[1], *shown, f"<!-- table: {sweep.name} -->\n<!-- end -->\n",
    ]  # fmt: skip
    return "\n".join(page)
