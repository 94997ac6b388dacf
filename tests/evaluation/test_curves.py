"""A run's curves are its metrics.csv: cycles from one, finite values, and only what moved."""

from pathlib import Path

from fgm.evaluation.curves import draw_curves, picture_of_curves, scalars_that_moved

LOGGED = """epoch,eval/fd,images_seen,mismatch,skipped,step
0,,640,0.5,0.0,9
0,3.0,,,,9
0,,1280,nan,0.0,19
0,2.0,,,,19
0,,1920,0.25,0.0,29
"""


def test_what_moved_is_read_with_its_cycles(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(LOGGED)
    curves = scalars_that_moved(tmp_path / "metrics.csv")
    assert list(curves.items()) == [("eval/fd", [(10, 3.0), (20, 2.0)]), ("mismatch", [(10, 0.5), (30, 0.25)])]


def test_a_run_that_logged_nothing_has_no_picture(tmp_path: Path) -> None:
    picture_of_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_an_axis_each_shows_them(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(LOGGED)
    curves = scalars_that_moved(tmp_path / "metrics.csv")
    drawn = {axis.get_title(): axis.lines[0].get_xydata() for axis in draw_curves(curves).axes if axis.lines}
    assert {name: [tuple(point) for point in points] for name, points in drawn.items()} == curves
    picture_of_curves(tmp_path / "metrics.csv", tmp_path / "samples" / "curves.png")
    assert (tmp_path / "samples" / "curves.png").read_bytes().startswith(b"\x89PNG")
