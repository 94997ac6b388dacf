"""The commands, end to end on a tiny budget: every promised file, resume, done, and what is refused."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import wandb
from safetensors.torch import load_file, save_file
from tiny_runs import Said, refused

from fgm.cli import evaluate, sample, train

TINY = [
    "training.max_steps=4", "training.batch_size=8", "training.log_every_n_steps=2", "training.save_every_n_steps=2", "evaluation.every=2",
    "evaluation.n=40", "evaluation.n_in_training=40", "method.teacher_steps=2",
    'teacher.overrides=["training.max_steps=3","training.batch_size=8","evaluation.n=40"]',
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def without_wandb() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        for key in [key for key in os.environ if key.startswith("WANDB")]:
            environment.delenv(key)
        environment.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("commands")
    return [f"outputs={root}/outputs", f"experiments={root}/experiments"]


@pytest.fixture(scope="module")
def finished(places: list[str], without_wandb: None) -> tuple[Path, str]:
    """A finished tiny run of digits_fgm, whose teacher was trained on the way, and what it printed."""
    with redirect_stdout(io.StringIO()) as printed:
        train.main(["experiment=digits_fgm", *TINY, *places, "record=true"])
    (run_dir,) = Path(places[0].removeprefix("outputs=")).glob("digits_fgm*")
    return run_dir, printed.getvalue()


def test_training_writes_every_promised_file(finished: tuple[Path, str], places: list[str]) -> None:
    run_dir, printed = finished
    for name in ("config.yaml", "generator.safetensors", "metrics.csv", "results.json", "checkpoints/last.ckpt"):
        assert (run_dir / name).stat().st_size > 0, name
    pictures = ["000002.png", "000004.png", "curves.png", "final.png"]
    assert sorted(p.name for p in (run_dir / "samples").iterdir()) == pictures
    assert "step 4/4" in printed and "\r" not in printed and "\x1b" not in printed
    experiments = Path(places[1].removeprefix("experiments="))
    (row,) = map(json.loads, (experiments / "digits_fgm" / "runs.jsonl").read_text().splitlines())
    assert row == json.loads((run_dir / "results.json").read_text())
    keys = {"experiment", "commit", "config_digest", "seed", "images_seen", "wall_s", "device", "results"}
    assert keys <= row.keys()
    assert row["images_seen"] == 4 * 8
    assert {(r["nfe"], r["weights"]) for r in row["results"]} == {
        (1, "ema"),
        (1, "raw"),
        (1, "teacher"),
        (2, "teacher"),
        (0, "real"),
    }
    assert not (experiments / "digits_teacher").exists(), "its teacher is not recorded"


def test_the_same_command_again_says_that_it_is_done(
    finished: tuple[Path, str], places: list[str], capsys: Said
) -> None:
    before = (finished[0] / "results.json").read_bytes()
    train.main(["experiment=digits_fgm", *TINY, *places])
    assert f"{finished[0]} is done" in capsys.readouterr().out
    assert (finished[0] / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "defect, message", [("garbage", "is no file of tensors"), ("architecture", "does not hold the weights of this DiT")]
)
def test_a_teacher_file_that_does_not_fit_is_refused(
    defect: str, message: str, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "teacher.safetensors"
    if defect == "garbage":
        file.write_bytes(b"x" * 100)
    else:
        save_file({"weight": torch.zeros(2)}, file)
    arguments = ["teacher=file", f"teacher.file={file}", f"outputs={tmp_path}/outputs"]
    assert message in refused(train.main, arguments, capsys, monkeypatch)
    assert not (tmp_path / "outputs").exists()


def test_a_finished_run_can_be_measured_and_drawn_from(
    finished: tuple[Path, str], places: list[str], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["experiment=digits_fgm", *TINY, *places]
    evaluate.main(run)
    (fd, *_) = (
        r["value"] for r in json.loads((finished[0] / "results.json").read_text())["results"] if r["weights"] == "ema"
    )
    assert f"{fd:.3g}" in capsys.readouterr().out
    sample.main([*run, "n=9", f"out={tmp_path}/nine.png"])
    assert (tmp_path / "nine.png").read_bytes().startswith(b"\x89PNG")
    line = refused(sample.main, ["experiment=digits_fgm", f"outputs={tmp_path}"], capsys, monkeypatch)
    assert "holds no finished run: make train EXP=digits_fgm" in line


def test_the_exported_weights_are_plain_tensors(finished: tuple[Path, str]) -> None:
    state = load_file(finished[0] / "generator.safetensors")
    assert "patchify.weight" not in state and "embed.weight" in state
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_wandb_offline_logs_and_a_broken_wandb_costs_a_line(
    places: list[str], tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is trained on the way, in the same process, and must not be taken for the student's W&B run."""
    tiny = ["experiment=digits_fgm", *TINY, f"outputs={tmp_path}/outputs", places[1], "logger=wandb"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    train.main([*tiny, f"run_dir={tmp_path}/offline"])
    assert "and to W&B" in capsys.readouterr().out
    (log,) = (tmp_path / "offline" / "wandb").glob("offline-run-*/*.wandb")
    shown = {"fd", "kid", "precision", "recall", "coverage", "accuracy", "power_high", "samples"}
    kept = log.read_bytes()
    assert all(f"eval/{name}".encode() in kept for name in shown) and b"train/mismatch" in kept
    assert b"final/fd/ema/1" in kept
    wandb.teardown()  # which has read the environment once for this process
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 3)
    train.main([*tiny, "training.max_steps=1", "evaluation.every=0", f"run_dir={tmp_path}/broken"])
    assert "W&B did not start" in capsys.readouterr().out
