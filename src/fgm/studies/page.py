"""A study's page in experiments/: question, command, plots and table are made; finding and verdict are written by hand.

<!-- by hand -->
**Finding.** ...          what stands between these marks is kept
<!-- by hand: end -->
"""

import re
from collections.abc import Sequence
from pathlib import Path

from fgm.studies.definition import Sweep
from fgm.studies.rows import Study
from fgm.table import render

MARKS = ("<!-- by hand -->\n", "<!-- by hand: end -->\n")
BY_HAND = re.compile(f"{re.escape(MARKS[0])}(.*?){re.escape(MARKS[1])}", re.S)
UNWRITTEN = "**Finding.** Not written yet.\n\n**Verdict.** Not written yet.\n"


def by_hand(path: Path) -> str:
    """The finding and the verdict as they stand in a page, if there is one."""
    found = BY_HAND.search(path.read_text()) if path.exists() else None
    return found[1] if found else UNWRITTEN


def write_page(sweep: Sweep, studies: Sequence[Study], pictures: dict[str, dict[str, Path]], experiments: Path) -> Path:
    """pictures: recipe -> title -> file, in the page's own folder."""
    path = experiments / sweep.name / "README.md"
    shown = [image(title, study, file) for study in studies for title, file in pictures[study.recipe].items()]
    commands = [
        f"`make sweep {'' if s.recipe == sweep.experiment else f'EXP={s.recipe} '}SWEEP={sweep.name}`" for s in studies
    ]
    page = [
        f"# {sweep.name}\n", f"**Question.** {sweep.question}\n",
        f"**Command.** {', '.join(commands)}; `make report SWEEP={sweep.name}` makes this page\n",
        MARKS[0] + by_hand(path) + MARKS[1], *shown, f"<!-- table: {sweep.name} -->\n<!-- end -->\n",
    ]  # fmt: skip
    path.write_text(render("\n".join(page), experiments))
    return path


def image(title: str, study: Study, file: Path) -> str:
    return f"![{title} of {study.recipe}]({file.name})\n"
