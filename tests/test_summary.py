"""What a command prints of its measurements: every value once, whole, in 80 columns, with what it stands on."""

from rich.console import Console

from fgm.analysis.summary import summary
from fgm.utils.records import Measurement

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
    with console.capture() as said:
        console.print(summary(results, "a run"))
    return said.get().splitlines()


def test_samplers_stand_side_by_side_in_80_columns() -> None:
    lines = [line for line in printed(RESULTS) if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    rows = {words[0]: words[1:] for line in lines if (words := line.split())}
    assert rows["fd"] == ["-1.23e-05"] * 4 + ["0.5"]
    assert rows[LONG] == ["4082"] * 4 + ["0.25"]
    assert not any("ceiling" in line or "17" in line for line in lines)


def test_each_protocol_is_said_once_with_its_n() -> None:
    below = printed(RESULTS)[-3:]
    assert below == [
        f"fd, {LONG}: features, uint8, n = 100",
        "fd: floor: held-out scans, n = 36",
        f"{LONG}: floor: shuffled captions, n = 36",
    ]


def test_the_mean_of_several_seeds_stands_beside_the_last_one() -> None:
    mean = Measurement("fd", 2.0, 100, "mean of 3 seeds of samples; features, uint8", 1, "ema")
    lines = printed([Measurement("fd", 1.0, 100, "features, uint8", 1, "ema"), mean])
    assert any("mean of 3 seeds" in line for line in lines)
    assert any(line.split() == ["fd", "1", "2"] for line in lines)
