"""No file that a user receives is executed: code in it is a one-line error wherever a file is opened, and does not run."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from official_files import Code
from rich.console import Console
from tiny_runs import TINY, Said, finished, refused, run_dir

import fgm.cli.evaluate
import fgm.cli.sample
import fgm.cli.train
from fgm.cli import teacher
from fgm.cli.config import compose_experiment
from fgm.cli.runs import read_yaml, write_yaml
from fgm.data.encodings import PromptCache
from fgm.data.folders import ImageZip
from fgm.data.latents import Latents
from fgm.data.prompts import JsonLines, TextFile
from fgm.data.published import CIFAR10
from fgm.evaluation.frechet import Moments
from fgm.evaluation.geneval.folder import RecordedDetections
from fgm.evaluation.pretrained_features import Clip, Dinov2, Inception
from fgm.flow.paths import RectifiedPath
from fgm.networks.unet import UNet
from fgm.teachers import bundled, edm_checkpoints, rectified_flow, torchcfm
from fgm.teachers.rectified_flow import RectifiedFlow
from fgm.training.checkpointing import LAST, PREVIOUS, last_checkpoint
from fgm.utils import pipelines

FORMS: dict[str, Callable[[Path, Any], Any]] = {
    "pickle": lambda file, code: file.write_bytes(pickle.dumps(code)),
    "pickle of Python 2": lambda file, code: file.write_bytes(pickle.dumps({"ema": code, "data": code}, protocol=2)),
    "torch.save": lambda file, code: torch.save({"ema": code, "ema_model": code, "state_dict": code}, file),
    "old format of torch.save": lambda file, code: torch.save({"w": code}, file, _use_new_zipfile_serialization=False),
    "checkpoint with code": lambda file, code: torch.save(
        {"state_dict": {"cycle": torch.tensor(1)}, "callbacks": code}, file
    ),
    "npy": lambda file, code: save_arrays(np.save, file, np.array([code], object)),
    "npz": lambda file, code: save_arrays(np.savez, file, **dict.fromkeys(("mu", "sigma"), np.array([code], object))),
}


def save_arrays(save: Any, file: Path, *arrays: Any, **named: Any) -> None:
    with file.open("wb") as stream:
        save(stream, *arrays, **named)


@pytest.fixture(params=FORMS)
def code_in(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Write a file of a given name with code in it, and check at the end that the code did not run."""
    code = Code(tmp_path / "ran")

    def write(name: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        FORMS[request.param](file, code)
        return file

    yield write
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", FORMS)
def test_code_runs_if_a_file_is_unpickled(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "file", Code(tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()
    if form.startswith("np"):
        opened = np.load(tmp_path / "file", allow_pickle=True)
        _ = opened["mu"] if form == "npz" else opened
    elif form.startswith("pickle"):
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists()


def network_directory(file: Path) -> Path:
    """Make the directory of a network whose weights are this file."""
    (file.parent / "config.json").write_text("{}")
    return file.parent


def cache(directory: Path) -> PromptCache:
    (directory / "prompts.txt").write_text("a cat")
    return PromptCache(TextFile(str(directory / "prompts.txt")), str(directory), "none")


def cache_of_shard(file: Path) -> PromptCache:
    index = {"prompts": ["", "a cat"], "encoders": {"text_encoder": "0"}, "max_length": 256, "dtype": "bfloat16"}
    (file.parent / "index.json").write_text(json.dumps(index | {"shard_size": 512, "truncated": {}, "widths": {}}))
    return cache(file.parent)


def small_unet() -> UNet:
    return UNet(width=8, multipliers=(1,), blocks=1, attention=(), size=8, head=8, time_scale=1.0)


def small_ddpmpp() -> RectifiedFlow:
    return RectifiedFlow(size=8, width=8, multipliers=(1,), blocks=1, attention=())


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "last.ckpt": (str(LAST), lambda f: last_checkpoint(f.parents[1], Console(quiet=True))),
    "previous.ckpt": (str(PREVIOUS), lambda f: last_checkpoint(f.parents[1], Console(quiet=True))),
    "teacher of a file": ("t.safetensors", lambda f: teacher.from_file(str(f), torch.nn.Linear(1, 1))),
    "teacher of a .pt": ("t.pt", lambda f: teacher.from_file(str(f), torch.nn.Linear(1, 1))),
    "teacher of a .ckpt": ("t.ckpt", lambda f: teacher.from_file(str(f), torch.nn.Linear(1, 1))),
    "teacher of EDM's": ("t.pkl", lambda f: edm_checkpoints.pretrained(str(f), RectifiedPath())),
    "teacher of torchcfm's": ("t.pt", lambda f: torchcfm.pretrained(str(f), small_unet())),
    "teacher of rectified flow's": ("t.pth", lambda f: rectified_flow.pretrained(str(f), small_ddpmpp())),
    "latents": ("x.safetensors", lambda f: Latents(str(f))),
    "latents in a folder": ("x/0.safetensors", lambda f: Latents(str(f.parent))),
    "zip of images": ("x.zip", lambda f: ImageZip(str(f))),
    "CIFAR-10's archive": ("cifar-10-python.tar.gz", lambda f: CIFAR10(str(f.parent)).split),
    "prompts": ("p.jsonl", lambda f: JsonLines(str(f)).read()),
    "index of encoded prompts": ("c/index.json", lambda f: cache(f.parent).read_index()),
    "encoded prompts": ("c/00000.safetensors", lambda f: cache_of_shard(f).read_index()),
    "reference": ("r.npz", lambda f: Moments.load(f, 8)),
    "Inception": ("i.pth", lambda f: Inception(str(f))),
    "DINOv2": ("d/model.safetensors", lambda f: Dinov2(network_directory(f))),
    "DINOv2 by its older file": ("d/pytorch_model.bin", lambda f: Dinov2(network_directory(f))),
    "CLIP": ("c/model.safetensors", lambda f: Clip(network_directory(f))),
    "autoencoder": ("m/vae/diffusion_pytorch_model.safetensors",
                    lambda f: pipelines.load_part("AutoencoderKL", str(network_directory(f).parent), "vae",
                                                  torch.float32)),
    "detections": ("d.json", RecordedDetections.from_file),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_code_in_a_file_is_a_one_line_error_and_does_not_run(
    reader: str, code_in: Callable[[str], Path], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, opened = READERS[reader]
    file = code_in(name)
    line = refused(lambda _: opened(file), [], capsys, monkeypatch)
    assert str(file.parent) in line


# commands


@pytest.mark.parametrize("code_in", ["pickle", "torch.save"], indirect=True)
def test_training_rejects_a_checkpoint_and_a_teacher_with_code(
    code_in: Callable[[str], Path], capsys: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = [f"outputs={tmp_path}/outputs", f"experiments={tmp_path}/experiments", *TINY[1:]]
    last = code_in(f"run/{LAST}")
    told = refused(
        fgm.cli.train.main, ["experiment=digits_teacher", *places, f"run_dir={tmp_path}/run"], capsys, monkeypatch
    )
    assert told.startswith(f"error: {last} cannot be read") and last.exists()
    assert not (tmp_path / "run" / "results.json").exists()
    for kind, key, name in (("file", "file", "t.safetensors"), ("edm", "checkpoint", "t.pkl")):
        file = code_in(name)
        given = ["experiment=digits_fgm", *places, f"teacher={kind}", f"teacher.{key}={file}"]
        assert str(file) in refused(fgm.cli.train.main, given, capsys, monkeypatch)
        assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("code_in", ["pickle", "torch.save"], indirect=True)
def test_weights_of_a_run_and_bundled_weights_are_read_as_tensors(
    code_in: Callable[[str], Path], capsys: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = finished(tmp_path, "digits_fgm", TINY)
    file = code_in(f"{run_dir(run).name}/generator.safetensors")
    assert str(file) in refused(fgm.cli.sample.main, [*run, f"out={tmp_path}/x.png"], capsys, monkeypatch)
    file = code_in("bundled/digits_fgm.safetensors")
    told = {"config": read_yaml(run_dir(run) / "config.yaml"), "row": {"results": []}}
    (file.parent / "digits_fgm.json").write_text(json.dumps(told))
    monkeypatch.setattr(bundled, "DIRECTORY", file.parent)
    other = ["experiment=digits_fgm", f"outputs={tmp_path}/none", f"out={tmp_path}/x.png"]
    assert str(file) in refused(fgm.cli.sample.main, other, capsys, monkeypatch)


# configs, whose _target_s are called


@pytest.mark.parametrize(
    "text, told",
    [
        ("!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{ran}']]", "is no config of"),
        ("network: {{_target_: os.mkdir, path: '{ran}'}}", "names os.mkdir, which no config of the suite does"),
        ("network: {{_target_: fgm.cli.runs.git, _args_: [init, '{ran}']}}", "names fgm.cli.runs.git, which"),
        (
            "network: [{{a: {{_target_: fgm.cli.runs.subprocess.run, args: [touch, '{ran}']}}}}]",
            "names fgm.cli.runs.subprocess",
        ),
        (
            "network: {{_target_: fgm.networks.mlp.VelocityMLP, "
            "dim: \"${{oc.create:'{{_target_: os.mkdir, path: {ran}}}'}}\"}}",
            "is no config of plain values (interpolates",
        ),
        ("network: &a [*a]", "is no config of plain values"),
        ("\x00\x01", "is no config of plain values"),
        ("a text", "is no config"),
    ],
)
@pytest.mark.parametrize("command", [fgm.cli.sample.main, fgm.cli.evaluate.main], ids=["sample", "evaluate"])
def test_config_of_a_run_calls_only_what_the_suite_names(
    text: str, told: str, command: Any, capsys: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = finished(tmp_path, "digits_fgm", TINY)
    file, ran = run_dir(run) / "config.yaml", tmp_path / "ran"
    before = read_yaml(file)
    if text.startswith("network"):
        file.write_text(yaml.dump(before | yaml.safe_load(text.format(ran=ran))))
    else:
        file.write_text(text.format(ran=ran))
    line = refused(command, run, capsys, monkeypatch)
    assert line.startswith(f"error: {file}: {told}") and not ran.exists()


@pytest.mark.parametrize("command", [fgm.cli.sample.main, fgm.cli.evaluate.main], ids=["sample", "evaluate"])
@pytest.mark.parametrize("lacking", ["config.yaml", "generator.safetensors"])
def test_run_without_a_file_is_a_one_line_error(
    lacking: str, command: Any, capsys: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = finished(tmp_path, "digits_fgm", TINY)
    (run_dir(run) / lacking).unlink()
    assert f"{run_dir(run) / lacking} is missing" in refused(command, run, capsys, monkeypatch)


def test_target_that_the_user_names_in_the_command_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example the user's own teacher, which is then in the config of its run."""
    from fgm.cli.runs import read_config

    (tmp_path / "mine.py").write_text("class Teacher: ...")
    monkeypatch.syspath_prepend(tmp_path)
    asked = compose_experiment("digits_fgm", ["teacher=own", "teacher._target_=mine.Teacher"])
    write_yaml(asked, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml", asked) == asked
    with pytest.raises(fgm.cli.config.UserError, match=r"names mine\.Teacher, which"):
        read_config(tmp_path / "config.yaml", compose_experiment("digits_fgm", []))
