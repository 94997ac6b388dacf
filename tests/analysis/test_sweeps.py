"""Rows become points with seeds, tables and plots: the newest definition counts, and failures are shown."""

from pathlib import Path
from typing import Any

import pytest

from fgm.analysis.plots import COLOURS, PLOTS, looks, metric_figure, write_plots
from fgm.analysis.sweeps import studies_of, study_tables, title
from fgm.cli.sweep import read_sweep
from fgm.cli.table import draw_study, render
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
    origin = {
        "experiment": "digits_fgm",
        "study": "t_star",
        "metrics": {"fd": "min", "recall": "max"},
        "sweep_digest": NEW,
    }
    digest = f"{t}-{c}-{seed}"
    cost = {"train_s": 60.0, "device": "cpu", "seed": seed, "config_digest": digest, "study_digest": digest}
    return origin | cost | {"swept": swept, "results": results, "curves": curves} | changes


ROWS = [
    row(0.9, "one", 0, 9.0, sweep_digest=OLD), row(1.0, "one", 0, 5.0), row(0.7, "one", 0, 1.0),
    row(0.7, "one", 1, 99.0), row(0.7, "one", 1, 2.0), row(0.7, "t_star", 0, 3.0), row(0.7, "t_star", 1, float("nan")),
    row(1.0, "one", 1, 0.0, results=[], failed="DivergenceError: <no>"),
]  # fmt: skip


def recorded(rows: list[dict[str, Any]], experiments: Path) -> Path:
    for each in rows:
        append_row(experiments / "t_star" / "runs.jsonl", each)
    return experiments


def test_axis_with_one_value_moves_to_the_title() -> None:
    (study,) = studies_of([row(0.7, c, seed, 1.0) for c in ("one", "t_star") for seed in (0, 1)])
    assert (study.axes, study.fixed) == (["method.c_in"], {"method.t_star": 0.7})
    assert "of digits_fgm, t_star 0.7, 4 runs of 2 points" in title(study)
    (single,) = studies_of([row(0.7, "one", 0, 1.0)])
    assert (single.axes, single.fixed) == (["method.t_star", "method.c_in"], {})


def test_every_point_has_a_look_of_its_own_beyond_the_number_of_colours() -> None:
    (study,) = studies_of([row(f"density_{i}", c, 0, 1.0) for i in range(2 * len(COLOURS)) for c in ("one", "t_star")])
    assert len(set(looks(study).values())) == len(study.cells) == 4 * len(COLOURS)


def test_newest_definition_and_row_count_and_values_that_are_not_finite_fail() -> None:
    (study,) = studies_of(ROWS)
    assert [tuple(cell.swept.values()) for cell in study.cells] == [(0.7, "one"), (0.7, "t_star"), (1.0, "one")]
    assert [cell.values("fd") for cell in study.cells] == [[1.0, 2.0], [3.0], [5.0]]
    assert study.best is study.cells[0] and study.cells[0].spread("fd") == pytest.approx(0.5**0.5)
    assert [run["failed"] for run in study.failed] == ["fd is nan", "DivergenceError: <no>"]
    assert study.references("fd") == {"teacher, 50 calls": 0.25, "floor: held-out": 0.125}


def test_points_within_both_standard_deviations_of_the_best_are_tied() -> None:
    """0.7 has 1.5 with a standard deviation of 0.71; 0.8 has 2.5 with 0.42, which reaches it, and 1.0 has 5."""
    beside = [row(0.8, "one", 0, 2.2), row(0.8, "one", 1, 2.8)]
    (near,), (single,) = studies_of([*ROWS, *beside]), studies_of(ROWS)
    assert [cell.values("fd") for cell in near.tied] == [[2.2, 2.8]] and single.tied == []


def test_deciding_metric_of_every_weights_stands_beside_the_averaged_ones_with_its_own_best() -> None:
    """The point whose raw weights are best is another one than that of the averages."""

    def with_raw(t: float, fd: float, raw: float) -> dict[str, Any]:
        each = row(t, "one", 0, fd)
        others = [
            Measurement("fd", value, 100, "toy features", 1, w).row() for w, value in (("raw", raw), ("ema_0.3", 4))
        ]
        return each | {"results": [each["results"][0], *others, *each["results"][1:]]}

    lines = study_tables([with_raw(0.7, 1.0, 3.0), with_raw(0.8, 2.0, 2.5)])
    assert "| t_star | fd | fd, raw | fd, ema_0.3 | seeds | training |" in lines
    assert "| 0.7 | **1** | 3 | **4** | 1 | 60 s |" in lines and "| 0.8 | 2 | **2.5** | 4 | 1 | 60 s |" in lines


def test_best_point_has_the_largest_mean_if_the_metric_is_maximised() -> None:
    (study,) = studies_of([each | {"metrics": {"fd": "max"}} for each in ROWS])
    assert study.best.swept == {"method.t_star": 1.0, "method.c_in": "one"}


def test_table_shows_means_failures_references_and_protocols(tmp_path: Path) -> None:
    text = "\n".join(study_tables(ROWS))
    assert "**t_star** of digits_fgm, 4 runs of 3 points, 2 failed on cpu" in text
    assert "| t_star | c_in | fd | seeds | training |" in text
    assert "| 0.7 | one | **1.5 ± 0.71** | 2 | 60 s |" in text and "| 1.0 | one | 5 | 1 of 2 | 60 s |" in text
    assert "teacher, 50 calls: fd 0.25." in text and "- t_star 1.0, c_in one, seed 1: DivergenceError: <no>" in text
    assert "fd: toy features, n = 100." in text
    fresh = render("<!-- table: t_star -->\n<!-- end -->", recorded(ROWS, tmp_path))
    assert text in fresh


def test_run_without_the_deciding_metric_has_failed_and_the_rest_is_plotted() -> None:
    other = [{**result, "metric": "kid"} for result in ROWS[1]["results"]]
    rows = [row(0.5, "two", 0, 1.0, results=other), *ROWS[1:4]]
    (study,) = studies_of(rows)
    assert [run["failed"] for run in study.failed] == ["fd was not measured"]
    assert "- t_star 0.5, c_in two, seed 0: fd was not measured" in study_tables(rows)
    assert all(plot(study, {}).axes for plot in PLOTS.values())


def test_table_of_some_metrics_leaves_out_the_others() -> None:
    assert "| 0.7 | one | 2 | 60 s |" in study_tables(ROWS, ["recall"])


def test_each_experiment_is_a_study_of_its_own() -> None:
    other = [each | {"experiment": "mixture_fgm", "sweep_digest": "else"} for each in ROWS[2:4]]
    assert [study.experiment for study in studies_of([*ROWS, *other])] == ["digits_fgm", "mixture_fgm"]


def test_study_without_a_page_gets_one_with_its_plots(tmp_path: Path) -> None:
    experiments = recorded(ROWS, tmp_path / "experiments")
    draw_study(read_sweep("t_star"), experiments, tmp_path / "outputs")
    page = (experiments / "t_star" / "README.md").read_text()
    names = {file.name for file in (experiments / "t_star").glob("*.png")}
    assert names == {f"digits_fgm_{plot}.png" for plot in ("metric", "curves", "cost")}
    assert all(f"]({name})" in page for name in names) and "| 0.7 | one | **1.5 ± 0.71** |" in render(page, experiments)
    for word in ("Question", "Command", "Finding", "Verdict"):
        assert f"**{word}.**" in page


def test_samples_are_drawn_if_their_pictures_exist(tmp_path: Path) -> None:
    (study,) = studies_of(ROWS)
    picture = metric_figure(study, {})
    picture.savefig(tmp_path / "drawn.png")
    files = write_plots(study, {}, {"t_star 0.7": tmp_path / "drawn.png"}, tmp_path)
    assert files["samples"].exists()


def test_words_are_ticks_at_the_left_side() -> None:
    worded = [each | {"swept": {"generator": f"density_{i % 3}"}, "seed": i} for i, each in enumerate(ROWS[1:6])]
    (study,) = studies_of(worded)
    (axis,) = metric_figure(study, {}).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["density_0", "density_1", "density_2"]
    dots = [y for x, y in axis.collections[-1].get_offsets()]
    assert dots == [0.0, 0.0, 1.0, 1.0, 2.0], "a dot for each finished run beside its word"


def test_curves_are_by_images_seen_with_at_most_64_points(tmp_path: Path) -> None:
    lines = ["epoch,eval/fd,images_seen,mismatch,skipped,step"]
    lines += [f"0,{'' if i % 10 else 123456.789},{8.0 * (i + 1) if i % 2 else ''},0.5,0,{i}" for i in range(200)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    curves = read_curves(tmp_path / "metrics.csv")
    assert curves.keys() == {"eval/fd", "mismatch"} and curves["eval/fd"][1] == [8.0 * 11, 123500.0]
    assert curves["mismatch"][0] == [8.0, 0.5] and 40 < len(curves["mismatch"]) <= 64
    assert read_curves(tmp_path / "none.csv") == {}
