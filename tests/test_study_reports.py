"""Features become tables, plots and pages: what is best, how far seeds differ, what failed, and what a hand has written."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from tiny_runs import light

from fgm.cli.report import main
from fgm.cli.studies.plots import metric_figure
from fgm.cli.studies.report import PLOTS
from fgm.cli.studies.rows import require_runs, studies_of
from fgm.cli.studies.table import table_of_study, title
from fgm.cli.studies.theme import COLOURS, PAPER, looks
from fgm.cli.table import render
from fgm.utils.records import Measurement, append_row, read_curves

NEW, OLD = "new", "old"


def row(t: float | str, c: str, seed: int, fd: float, **changes: Any) -> dict[str, Any]:
    results = [
        Measurement("fd", fd, 100, "toy features", 1, "ema").row(),
        Measurement("fd", 0.25, 100, "toy features", 50, "teacher").row(),
        Measurement("fd", 0.125, 30, "floor: held-out; toy features").row(),
    ]
    curves = {"eval/fd": [[64.0, 2 * fd], [128.0, fd]], "mismatch": [[64.0, 0.1], [128.0, 0.05]]}
    swept = {"method.t_star": t, "method.c_in": c}
    told = {"recipe": "digits_fgm", "study": "t_star", "metrics": {"fd": "min", "recall": "max"}, "sweep_digest": NEW}
    digest = f"{t}-{c}-{seed}"
    cost = {"train_s": 60.0, "device": "cpu", "seed": seed, "config_digest": digest, "study_digest": digest}
    return told | cost | {"swept": swept, "results": results, "curves": curves} | changes


ROWS = [
    row(0.9, "one", 0, 9.0, sweep_digest=OLD), row(1.0, "one", 0, 5.0), row(0.7, "one", 0, 1.0),
    row(0.7, "one", 1, 99.0), row(0.7, "one", 1, 2.0), row(0.7, "t_star", 0, 3.0), row(0.7, "t_star", 1, float("nan")),
    row(1.0, "one", 1, 0.0, results=[], failed="DivergenceError: <no>"),
]  # fmt: skip


def written(rows: list[dict[str, Any]], place: Path) -> Path:
    for told in rows:
        append_row(place / "experiments" / "t_star" / "runs.jsonl", told)
    return place


def reported(place: Path, *more: str) -> str:
    main(["sweep=t_star", f"outputs={place}/outputs", f"experiments={place}/experiments", *more])
    return (place / "outputs" / "t_star" / "report.html").read_text()


def test_an_axis_of_one_value_is_told_once_and_neither_tabled_nor_plotted() -> None:
    (study,) = studies_of([row(0.7, c, seed, 1.0) for c in ("one", "t_star") for seed in (0, 1)])
    assert (study.axes, study.fixed) == (["method.c_in"], {"method.t_star": 0.7})
    assert "of digits_fgm, t_star 0.7, 4 runs of 2 points" in title(study)
    (alone,) = studies_of([row(0.7, "one", 0, 1.0)])
    assert (alone.axes, alone.fixed) == (["method.t_star", "method.c_in"], {})


def test_more_names_than_colours_are_told_apart_by_their_lines() -> None:
    (study,) = studies_of([row(f"density_{i}", c, 0, 1.0) for i in range(2 * len(COLOURS)) for c in ("one", "t_star")])
    assert len(set(looks(study, PAPER).values())) == len(study.cells) == 4 * len(COLOURS)


def test_the_newest_definition_counts_each_seed_once_and_what_is_not_finite_has_failed() -> None:
    (study,) = studies_of(ROWS)
    assert [tuple(cell.swept.values()) for cell in study.cells] == [(0.7, "one"), (0.7, "t_star"), (1.0, "one")]
    assert [cell.values("fd") for cell in study.cells] == [[1.0, 2.0], [3.0], [5.0]]
    assert study.best is study.cells[0] and study.cells[0].spread("fd") == pytest.approx(0.5**0.5)
    assert [run["failed"] for run in study.failed] == ["fd is nan", "DivergenceError: <no>"]
    assert study.reference("fd") == {"teacher, 50 calls": 0.25, "floor: held-out": 0.125}


def test_near_the_best_is_what_its_seeds_and_the_best_ones_reach() -> None:
    """0.7 has 1.5 with a standard deviation of 0.71; 0.8 has 2.5 with 0.42, which reaches it, and 1.0 has 5."""
    beside = [row(0.8, "one", 0, 2.2), row(0.8, "one", 1, 2.8)]
    (near,), (alone,) = studies_of([*ROWS, *beside]), studies_of(ROWS)
    assert [cell.values("fd") for cell in near.near_best] == [[2.2, 2.8]] and alone.near_best == []


def test_more_is_better_where_the_study_says_so() -> None:
    (study,) = studies_of([told | {"metrics": {"fd": "max"}} for told in ROWS])
    assert study.best.swept == {"method.t_star": 1.0, "method.c_in": "one"}


def test_the_table_is_of_the_rows_alone(tmp_path: Path) -> None:
    text = "\n".join(table_of_study(ROWS))
    assert "**t_star** of digits_fgm, 4 runs of 3 points, 2 failed on cpu" in text
    assert "| t_star | c_in | fd | seeds | training |" in text
    assert "| 0.7 | one | **1.5 ± 0.71** | 2 | 60 s |" in text and "| 1.0 | one | 5 | 1 of 2 | 60 s |" in text
    assert "teacher, 50 calls: fd 0.25." in text and "- t_star 1.0, c_in one, seed 1: DivergenceError: <no>" in text
    assert "fd: toy features, n = 100." in text
    fresh = render("<!-- table: t_star -->\n<!-- end -->", written(ROWS, tmp_path) / "experiments")
    assert text in fresh


def test_a_run_that_did_not_measure_what_decides_has_failed_and_the_rest_is_drawn() -> None:
    """As a call leaves it whose metrics= the recipe does not measure."""
    other = [{**result, "metric": "kid"} for result in ROWS[1]["results"]]
    rows = [row(0.5, "two", 0, 1.0, results=other), *ROWS[1:4]]
    (study,) = studies_of(rows)
    assert [run["failed"] for run in study.failed] == ["fd was not measured"]
    assert "- t_star 0.5, c_in two, seed 0: fd was not measured" in table_of_study(rows)
    assert all(plot(study, PAPER, {}).axes for plot in PLOTS.values())


def test_a_table_of_some_metrics_leaves_the_runs_as_they_are() -> None:
    assert "| 0.7 | one | 2 | 60 s |" in table_of_study(ROWS, ["recall"])


def test_studies_of_two_recipes_stand_one_below_the_other() -> None:
    other = [told | {"recipe": "mixture_fgm", "sweep_digest": "else"} for told in ROWS[2:4]]
    assert [study.recipe for study in studies_of([*ROWS, *other])] == ["digits_fgm", "mixture_fgm"]


class Page(HTMLParser):
    """What a browser would fetch, what it would show, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "href")]
        self.open += [] if tag in ("img", "meta", "source", "br") else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_shows_what_there_is(tmp_path: Path) -> None:
    drawn = written(ROWS, tmp_path) / "outputs" / "t_star" / "run" / "samples" / "drawn.png"
    drawn.parent.mkdir(parents=True)
    matplotlib.image.imsave(drawn, np.zeros((4, 4)))
    (drawn.parents[1] / "results.json").write_text(json.dumps({"config_digest": "0.7-one-0"}))
    text = reported(tmp_path)
    page = Page(text)
    assert page.open == [] and "http" not in text.replace("https://", "") and len(page.sources) == 7
    pictures = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and pictures[-1] == drawn.read_bytes()
    for told in ("1.5 ± 0.71", "DivergenceError: <no>", "At which time t*", "Not written yet", "t_star 0.7, c_in one"):
        assert told in page.text
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text
    folder = tmp_path / "experiments" / "t_star"
    names = {f"digits_fgm_{name}.png" for name in ("metric", "curves", "cost", "samples")}
    assert {file.name for file in folder.glob("*.png")} == names
    assert set(re.findall(r"\]\(([\w.]+)\)", (folder / "README.md").read_text())) == names


def test_what_a_hand_has_written_stays(tmp_path: Path) -> None:
    reported(written(ROWS, tmp_path))
    path = tmp_path / "experiments" / "t_star" / "README.md"
    for word in ("Question", "Command", "Finding", "Verdict"):
        assert f"**{word}" in path.read_text()
    mine = "**Finding.** 0.7 is `best` & <cheap>.\n\n**Verdict.** Confirmed.\n"
    path.write_text(path.read_text().replace("**Finding.** Not written yet.\n\n**Verdict.** Not written yet.\n", mine))
    append_row(tmp_path / "experiments" / "t_star" / "runs.jsonl", row(0.97, "one", 0, 0.75))
    text = reported(tmp_path)
    assert mine in path.read_text() and "| 0.97 | one | **0.75** |" in path.read_text()
    assert "<strong>Finding.</strong> 0.7 is <code>best</code> &amp; &lt;cheap&gt;." in text


def test_words_along_an_axis_stand_at_its_side() -> None:
    worded = [told | {"swept": {"generator": f"density_{i % 3}"}, "seed": i} for i, told in enumerate(ROWS[1:6])]
    (study,) = studies_of(worded)
    (axis,) = metric_figure(study, PAPER, {}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["density_0", "density_1", "density_2"]
    dots = [y for x, y in axis.collections[-1].get_offsets()]
    assert dots == [0.0, 0.0, 1.0, 1.0, 2.0], "a dot for each finished run beside its word"


def test_bad_input_is_one_line_before_torch(tmp_path: Path) -> None:
    assert "sweep = t_sta: unknown; did you mean t_star?" in light("report", ["sweep=t_sta"])
    nothing = light("report", ["sweep=t_star", f"experiments={tmp_path}"])
    assert "no point of t_star has been run: make sweep SWEEP=t_star" in nothing
    failed = written([ROWS[-1]], tmp_path) / "experiments"
    said = light("report", ["sweep=t_star", f"experiments={failed}"])
    assert "all 1 points of t_star on digits_fgm failed, the first one: DivergenceError: <no>" in said
    require_runs(studies_of(ROWS), "t_star")


def test_curves_are_against_images_and_stay_short(tmp_path: Path) -> None:
    lines = ["epoch,eval/fd,images_seen,mismatch,skipped,step"]
    lines += [f"0,{'' if i % 10 else 123456.789},{8.0 * (i + 1) if i % 2 else ''},0.5,0,{i}" for i in range(200)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    curves = read_curves(tmp_path / "metrics.csv")
    assert curves.keys() == {"eval/fd", "mismatch"} and curves["eval/fd"][1] == [8.0 * 11, 123500.0]
    assert curves["mismatch"][0] == [8.0, 0.5] and 40 < len(curves["mismatch"]) <= 64
    assert read_curves(tmp_path / "none.csv") == {}
