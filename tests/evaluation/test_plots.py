"""Curves show metrics.csv: steps from one, finite values, only scalars that change."""

from pathlib import Path

from fgm.evaluation.plots import changing_scalars, draw_curves, save_curves

LOGGED = """epoch,eval/fd,images_seen,mismatch,skipped,step
0,,640,0.5,0.0,9
0,3.0,,,,9
0,,1280,nan,0.0,19
0,2.0,,,,19
0,,1920,0.25,0.0,29
"""


def test_changing_scalars_are_read_with_their_steps(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(LOGGED)
    curves = changing_scalars(tmp_path / "metrics.csv")
    assert list(curves.items()) == [("eval/fd", [(10, 3.0), (20, 2.0)]), ("mismatch", [(10, 0.5), (30, 0.25)])]


def test_no_plot_without_logged_values(tmp_path: Path) -> None:
    save_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_each_curve_has_an_axis(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(LOGGED)
    curves = changing_scalars(tmp_path / "metrics.csv")
    drawn = {axis.get_title(): axis.lines[0].get_xydata() for axis in draw_curves(curves).axes if axis.lines}
    assert {name: [tuple(point) for point in points] for name, points in drawn.items()} == curves
    save_curves(tmp_path / "metrics.csv", tmp_path / "samples" / "curves.png")
    assert (tmp_path / "samples" / "curves.png").read_bytes().startswith(b"\x89PNG")
