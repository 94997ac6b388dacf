"""Tables follow from the rows: no value without protocol and n, means over the seeds of the newest config."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fgm.analysis.tables import benchmark_tables, summary
from fgm.cli.table import page_line, render, tables
from fgm.utils.records import Measurement, append_row, read_rows

LONG = "shapeeval_single_object"
RESULTS = [
    *(Measurement(metric, value, 100, "features, uint8", nfe, weights)
      for metric, value in (("fd", -1.2345e-05), (LONG, 4082.4))
      for nfe, weights in ((1, "ema"), (1, "raw"), (1, "teacher"), (50, "teacher"))),
    Measurement("fd", 0.5, 36, "floor: held-out scans; features, uint8"),
    Measurement(LONG, 0.25, 36, "floor: shuffled captions; features, uint8"),
    Measurement("fd", 17.0, 36, "ceiling: noise; features, uint8"),
]  # fmt: skip


def printed(results: list[Measurement]) -> list[str]:
    console = Console(width=80, highlight=False, soft_wrap=True)
    with console.capture() as captured:
        console.print(summary(results, "a run"))
    return captured.get().splitlines()


def test_summary_fits_80_columns() -> None:
    lines = [line for line in printed(RESULTS) if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    rows = {words[0]: words[1:] for line in lines if (words := line.split())}
    assert rows["fd"] == ["-1.23e-05"] * 4 + ["0.5"]
    assert rows[LONG] == ["4082"] * 4 + ["0.25"]
    assert not any("ceiling" in line or "17" in line for line in lines)


def test_summary_names_each_protocol_once_with_its_n() -> None:
    below = printed(RESULTS)[-3:]
    assert below == [
        f"fd, {LONG}: features, uint8, n = 100",
        "fd: floor: held-out scans, n = 36",
        f"{LONG}: floor: shuffled captions, n = 36",
    ]


def test_summary_shows_a_second_value_of_one_sampler_under_its_protocol() -> None:
    mean = Measurement("fd", 2.0, 100, "mean of 3 seeds of samples; features, uint8", 1, "ema")
    lines = printed([Measurement("fd", 1.0, 100, "features, uint8", 1, "ema"), mean])
    assert any("mean of 3 seeds" in line for line in lines)
    assert any(line.split() == ["fd", "1", "2"] for line in lines)


def run(value: float, seed: int = 0, study: str = "a") -> dict[str, Any]:
    results = [
        Measurement("fd", value, 100, "features-12345678", 1, "ema").row(),
        Measurement("fd", 2.0, 100, "features-12345678", 50, "teacher").row(),
        Measurement("fd", 0.5, 30, "floor: held-out; features-12345678").row(),
    ]
    return {"seed": seed, "study_digest": study, "device": "cpu, 1 threads", "train_s": 60.0, "results": results}


def written(rows: list[dict[str, Any]], experiments: Path) -> Path:
    for row in rows:
        append_row(experiments / "toy" / "runs.jsonl", row)
    return experiments


@pytest.mark.parametrize("protocol, n", [("", 10), ("p", 0)])
def test_value_without_protocol_or_n_is_refused(protocol: str, n: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never shown without"):
        Measurement("fd", 1.0, n, protocol)
    bad = run(1.0)
    bad["results"][0] |= {"protocol": protocol, "n": n}
    with pytest.raises(ValueError, match="never shown without"):
        tables(["toy"], written([bad], tmp_path), [])


def test_table_shows_mean_and_sd_over_the_seeds_of_the_newest_config(tmp_path: Path) -> None:
    rows = [run(9.0, study="old"), run(1.0), run(2.0, seed=1), run(100.0, seed=2), run(3.0, seed=2)]
    text = tables(["toy"], written(rows, tmp_path), [])
    assert "| one step, ema | 1 | 2 ± 1 |" in text
    assert "| teacher's ODE | 50 | 2 |" in text
    assert "3 seeds, 1.0 min training on cpu, 1 thread\n" in text
    assert "fd: features-12345678, n = 100" in text
    assert len(read_rows(tmp_path / "toy" / "runs.jsonl")) == 5


def test_run_with_overrides_does_not_replace_the_experiment_as_written(tmp_path: Path) -> None:
    trial = run(7.0, study="other") | {"differs": ["training.max_steps=20", "method.t_star=0.9"]}
    assert "| one step, ema | 1 | 1 |" in tables(["toy"], written([run(1.0), trial], tmp_path / "both"), [])
    single = tables(["toy"], written([trial], tmp_path / "single"), [])
    assert (
        "**toy** with training.max_steps=20 method.t_star=0.9, 1 seed" in single
        and "| one step, ema | 1 | 7 |" in single
    )


def test_only_text_between_marks_is_rewritten(tmp_path: Path) -> None:
    experiments = written([run(1.0)], tmp_path)
    document = "before\n<!-- table: toy -->\nstale\n<!-- end -->\nafter\n"
    fresh = render(document, experiments)
    assert fresh.startswith("before\n<!-- table: toy -->\n**toy**") and fresh.endswith("<!-- end -->\nafter\n")
    assert "stale" not in fresh and render(fresh, experiments) == fresh


def test_mark_selects_metrics_and_each_protocol_appears_once(tmp_path: Path) -> None:
    row = run(1.0)
    row["results"] += [result | {"metric": "kid", "value": 7.0} for result in row["results"]]
    fresh = render("<!-- table: toy (kid) -->\n<!-- end -->", written([row], tmp_path))
    assert "| sampler | calls | kid |" in fresh and "fd" not in fresh and "| one step, ema | 1 | 7 |" in fresh
    assert "fd, kid: features-12345678, n = 100." in render("<!-- table: toy -->\n<!-- end -->", tmp_path)


def test_benchmark_table_holds_the_newest_row_of_each_measurement() -> None:
    results = [Measurement("ratio", 1.5, 40, "p", 1, "raw", {"low": 1.0, "high": 2.0}).row()]
    row = {"experiment": "digits_fgm", "subject": "cycle", "device": "cpu", "results": results}
    old = row | {"results": [result | {"value": 99.0} for result in results]}
    head, _, one, other, _ = benchmark_tables([old, row, row | {"experiment": "another"}])
    assert (
        head == "| experiment | cycle | n | ratio | device |" and one == "| digits_fgm | p | 40 | 1.5 (1 to 2) | cpu |"
    )
    assert other.startswith("| another |")
    assert len(benchmark_tables([row, row | {"subject": "memory"}])) == 8, "a table for each subject"


def test_page_line_quotes_question_and_first_sentence_of_the_verdict() -> None:
    page = "# toy\n\n**Question.** Is it\nso?\n\n**Verdict.** Yes. But 3.5 of\nthem are not.\n\n<!-- table: toy -->\n"
    assert page_line("toy", page, 2) == "| [toy](toy/README.md) | Is it so? | 2 | Yes |"
