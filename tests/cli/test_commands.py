"""The commands, end to end on a tiny budget: every promised file, resume, done, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

TINY = [
    "training.max_steps=4", "training.batch_size=8", "training.log_every_n_steps=2", "training.save_every_n_steps=2", "evaluation.every=2",
    "evaluation.n=40", "evaluation.n_in_training=40", "method.teacher_steps=2",
    'teacher.overrides=["training.max_steps=3","training.batch_size=8","evaluation.n=40"]',
]  # fmt: skip


def command(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | {
        "WANDB_MODE": "disabled"
    }
    return subprocess.run(
        [sys.executable, "-m", f"fgm.cli.{module}", *arguments], capture_output=True, text=True, env=clean | environment
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("commands")
    return [f"outputs={root}/outputs", f"experiments={root}/experiments"]


@pytest.fixture(scope="module")
def finished(places: list[str]) -> tuple[Path, str]:
    """A finished tiny run of digits_fgm, whose teacher was trained on the way."""
    done = command("train", "experiment=digits_fgm", *TINY, *places, "record=true")
    assert done.returncode == 0, done.stderr
    (run_dir,) = Path(places[0].removeprefix("outputs=")).glob("digits_fgm*")
    return run_dir, done.stdout


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


def test_the_same_command_again_says_that_it_is_done(finished: tuple[Path, str], places: list[str]) -> None:
    before = (finished[0] / "results.json").read_bytes()
    again = command("train", "experiment=digits_fgm", *TINY, *places)
    assert again.returncode == 0
    assert f"{finished[0]} is done" in again.stdout
    assert (finished[0] / "results.json").read_bytes() == before


@pytest.mark.parametrize("defect", ["garbage", "another architecture"])
def test_a_teacher_file_that_does_not_fit_is_refused(defect: str, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    if defect == "garbage":
        file.write_bytes(b"x" * 100)
    else:
        import torch

        save_file({"weight": torch.zeros(2)}, file)
    refused = command("train", "teacher=file", f"teacher.file={file}", f"outputs={tmp_path}/outputs")
    assert refused.returncode == 2
    assert "does not hold the weights of this DiT" in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_finished_run_can_be_measured_and_drawn_from(
    finished: tuple[Path, str], places: list[str], tmp_path: Path
) -> None:
    run = ["experiment=digits_fgm", *TINY, *places]
    measured = command("evaluate", *run)
    assert measured.returncode == 0, measured.stderr
    fd = next(
        r["value"] for r in json.loads((finished[0] / "results.json").read_text())["results"] if r["weights"] == "ema"
    )
    assert f"{fd:.3g}" in measured.stdout
    drawn = command("sample", *run, "n=9", f"out={tmp_path}/nine.png")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "nine.png").read_bytes().startswith(b"\x89PNG")
    refused = command("sample", "experiment=digits_fgm", f"outputs={tmp_path}")
    assert refused.returncode == 2 and "holds no finished run: make train EXP=digits_fgm" in refused.stderr


def test_the_exported_weights_are_plain_tensors(finished: tuple[Path, str]) -> None:
    state = load_file(finished[0] / "generator.safetensors")
    assert "patchify.weight" not in state and "embed.weight" in state
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_wandb_offline_logs_and_a_broken_wandb_costs_a_line(places: list[str], tmp_path: Path) -> None:
    """The teacher is trained on the way, in the same process, and must not be taken for the student's W&B run."""
    tiny = [*TINY, f"outputs={tmp_path}/outputs", places[1], "experiment=digits_fgm", "logger=wandb"]
    offline = command("train", *tiny, f"run_dir={tmp_path}/offline", WANDB_MODE="offline")
    assert offline.returncode == 0, offline.stderr
    assert "and to W&B" in offline.stdout
    (log,) = (tmp_path / "offline" / "wandb").glob("offline-run-*/*.wandb")
    shown = {"fd", "kid", "precision", "recall", "coverage", "accuracy", "power_high", "samples"}
    kept = log.read_bytes()
    assert all(f"eval/{name}".encode() in kept for name in shown) and b"train/mismatch" in kept
    assert b"final/fd/ema/1" in kept
    broken = command("train", *tiny, f"run_dir={tmp_path}/broken", WANDB_MODE="online", WANDB_API_KEY="x" * 3)
    assert broken.returncode == 0, broken.stderr
    assert "W&B did not start" in broken.stdout
