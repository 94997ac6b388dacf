"""The report of a study: one HTML file that needs nothing else, and its plots as PNGs."""

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from fgm.cli.studies.definition import Sweep
from fgm.cli.studies.plots import cost_figure, curves_figure, metric_figure, samples_figure
from fgm.cli.studies.points import label, short
from fgm.cli.studies.rows import Cell, Study
from fgm.cli.studies.table import cost, failures, protocols, references, seeds, title, told
from fgm.cli.studies.theme import DARK, DPI, LIGHT, PAPER, Theme

PLOTS: dict[str, Callable[[Study, Theme, dict[str, str]], Figure]] = {
    "metric": metric_figure, "cost": cost_figure, "curves": curves_figure,
}  # fmt: skip
CAPTIONS = {
    "metric": "Every seed a dot; the mean, and one standard deviation over the seeds as a bar.",
    "curves": "In training: thin lines are single seeds, thick ones their mean.",
    "cost": "What a run's training takes, beside what comes of it.",
    "samples": "Samples of the first seed that finished, from the same noise and conditions.",
}


def write_report(sweep: Sweep, studies: Sequence[Study], found: str, places: dict[str, Path], path: Path) -> None:
    """
    Args:
        found: finding and verdict, Markdown.
        places: config digest -> run directory, where there is one.
        path: of the HTML.
    """
    environment = Environment(loader=PackageLoader("fgm.cli.studies", "."), autoescape=True, trim_blocks=True)
    sections = [section(study, sweep, places) for study in studies]
    path.parent.mkdir(parents=True, exist_ok=True)
    template = environment.get_template("report.html")
    path.write_text(template.render(sweep=sweep, found=as_html(found), sections=sections))


def section(study: Study, sweep: Sweep, places: dict[str, Path]) -> dict[str, Any]:
    metrics = study.measured
    return {
        "title": as_html(title(study))[0],
        "axes": [short(axis, study.axes) for axis in study.axes],
        "metrics": metrics,
        "cells": [line_of(cell, study) for cell in study.cells],
        "notes": [*references(study, metrics), protocols(study, metrics)],
        "failures": failures(study),
        "figures": [shown(name, study, sweep.units) for name in PLOTS],
        "samples": {name: data_uri(file.read_bytes()) for name, file in drawn(study, places).items()},
        "sample_caption": CAPTIONS["samples"],
    }


def line_of(cell: Cell, study: Study) -> dict[str, Any]:
    values = {metric: told(cell, metric) for metric in study.measured}
    return {"swept": list(cell.swept.values()), "told": values, "seeds": seeds(cell), "cost": cost(cell),
            "best": cell is study.best}  # fmt: skip


def shown(name: str, study: Study, units: dict[str, str]) -> dict[str, str]:
    """A picture for a light page and one for a dark page, as data URIs."""
    light, dark = (data_uri(png(PLOTS[name](study, theme, units))) for theme in (LIGHT, DARK))
    return {"name": name, "caption": CAPTIONS[name], "light": light, "dark": dark}


def write_plots(study: Study, sweep: Sweep, places: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Title -> PNG on white."""
    figures = {name: plot(study, PAPER, sweep.units) for name, plot in PLOTS.items()}
    pictures = drawn(study, places)
    figures |= {"samples": samples_figure(pictures, PAPER)} if pictures else {}
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{study.recipe}_{name}.png" for name in figures}
    for name, made in figures.items():
        files[name].write_bytes(png(made))
    return files


def drawn(study: Study, places: dict[str, Path]) -> dict[str, Path]:
    """The picture of a cell's first seed, where its run directory is still there."""
    digests = {label(cell.swept): cell.runs[0]["config_digest"] for cell in study.finished}
    files = {name: places[d] / "samples" / "drawn.png" for name, d in digests.items() if d in places}
    return {name: file for name, file in files.items() if file.exists()}


def run_places(outputs: Path, study: str) -> dict[str, Path]:
    """Config digest -> run directory."""
    found = sorted((outputs / study).glob("*/results.json"))
    return {json.loads(file.read_text())["config_digest"]: file.parent for file in found}


def png(made: Figure) -> bytes:
    content = io.BytesIO()
    made.savefig(content, dpi=DPI, format="png")
    return content.getvalue()


def data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def as_html(markdown: str) -> list[str]:
    """Its paragraphs; bold, code and links alone are known."""
    paragraphs = [escape(" ".join(p.split()), quote=False) for p in markdown.split("\n\n") if p.strip()]
    return [inline(paragraph) for paragraph in paragraphs]


def inline(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"\[([^\]]+)\]\((https://[^)\s\"]+)\)", r'<a href="\2">\1</a>', text).replace("\\*", "*")
