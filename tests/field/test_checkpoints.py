"""Checkpoints as users have them: recognised by content, unwrapped, or refused in one line that says what they are."""

import argparse
import gzip
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from field_files import one_line
from safetensors.torch import save_file
from torch import Tensor, nn

from fgm.cli import teacher
from fgm.data.folders import ImageZip
from fgm.data.latents import Latents
from fgm.data.published import CIFAR10, read_idx
from fgm.evaluation.frechet import Moments
from fgm.utils.pickles import load_state, read_checkpoint, require_finite
from fgm.utils.pretrained import fingerprint, require_checkpoint, require_directory

pytestmark = pytest.mark.field
STATE = {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([3.0])}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer of Git LFS": (lambda p: p.write_bytes(LFS), "is a pointer of Git LFS, not the file: run git lfs pull"),
    "web page": (lambda p: p.write_text("\n<!DOCTYPE html><html>Sign in"), "is a web page: download the file itself"),
    "error of a storage server": (lambda p: p.write_text("<?xml version='1.0'?><Error/>"), "is an XML text"),
    "nothing": (lambda p: p.write_bytes(b""), "is empty"),
    "zeros": (lambda p: p.write_bytes(bytes(4096)), "holds only zeros"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x" * 99)), "is a gzip file"),
    "image": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "is a PNG image"),
    "text": (lambda p: p.write_text("weights"), "is no file of tensors"),
    "another zip": (zipped, "is a zip archive that torch.save did not write"),
    "pickle of a module": (lambda p: torch.save(nn.Linear(1, 1), p), "names torch.nn.modules.linear.Linear, and only"),
    "pickle of another object": (lambda p: p.write_bytes(pickle.dumps(slice(1), 4)), r"t\.pt: "),
    "cut .safetensors": (
        lambda p: (save_file(STATE, p), p.write_bytes(p.read_bytes()[:-3])),
        r"no complete \.safetens",
    ),
    "cut torch.save": (lambda p: (torch.save(STATE, p), p.write_bytes(p.read_bytes()[:-300])), "or a damaged one"),
    "list": (lambda p: torch.save([torch.ones(1)], p), "holds no named tensors"),
    "no tensors": (lambda p: torch.save({"step": 3}, p), "holds no named tensors"),
}


@pytest.mark.parametrize("write, message", OTHERS.values(), ids=OTHERS)
def test_file_that_is_no_checkpoint_is_called_what_it_is(
    write: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "t.pt")
    one_line(message, lambda: teacher.from_file(str(tmp_path / "t.pt"), nn.Linear(1, 1)))
    one_line(r"t\.pt", lambda: load_state(tmp_path / "t.pt", STATE.keys()))


@pytest.mark.parametrize("content", [LFS, b"<html>", b""])
def test_published_checkpoint_is_recognised_before_anything_is_loaded(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "edm.pkl").write_bytes(content)
    one_line(r"edm\.pkl is ", lambda: require_checkpoint(str(tmp_path / "edm.pkl"), None))


def test_directory_that_is_not_given_is_named_by_its_key() -> None:
    one_line("detector.directory = null: put CLIP", lambda: require_directory(None, (), "CLIP", "detector.directory"))


LIGHTNING = {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in STATE.items()}, "optimizer_states": [{"state": {}}]}
WRAPPED: dict[str, Any] = {
    "plain": STATE,
    "ordered": OrderedDict(STATE),
    "numpy scalars": {"step": np.int64(400_000), "lr": np.float64(1e-4), "weights": STATE},
    "arguments": {"args": argparse.Namespace(lr=1e-4), "path": Path("a"), "model": STATE},
    "DDP": {f"module.{k}": v for k, v in STATE.items()},
    "torch.compile": {f"_orig_mod.{k}": v for k, v in STATE.items()},
    "both": {"model": {f"module._orig_mod.{k}": v for k, v in STATE.items()}},
    "Lightning": LIGHTNING,
    "beside an optimizer": {"net": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(1, 1)}}}},
}


@pytest.mark.parametrize("content", WRAPPED.values(), ids=WRAPPED)
def test_weights_load_whatever_they_are_wrapped_in(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "t.pt")
    net = teacher.from_file(str(tmp_path / "t.pt"), nn.Linear(1, 1))
    assert net(torch.ones(1, 1)).item() == 5


@pytest.mark.parametrize("name", ["t.safetensors", "t.pt", "t.bin", "t"])
def test_format_follows_from_the_content_and_not_from_the_name(name: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / name)
    assert load_state(tmp_path / name, STATE.keys()).keys() == STATE.keys()
    torch.save(STATE, tmp_path / name)
    assert load_state(tmp_path / name, STATE.keys()).keys() == STATE.keys()
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=False)
    assert load_state(tmp_path / name, STATE.keys()).keys() == STATE.keys()


def test_network_that_a_file_has_twice_is_named(tmp_path: Path) -> None:
    torch.save({"ema": STATE, "model": STATE}, tmp_path / "t.pt")
    one_line("holds the network 2 times, as ema, model", lambda: load_state(tmp_path / "t.pt", STATE.keys()))


def test_weights_of_another_network_are_named_with_the_file(tmp_path: Path) -> None:
    torch.save({"module.other": torch.ones(1)}, tmp_path / "t.pt")
    message = r"t\.pt does not hold the weights of this Linear: .*"
    one_line(message, lambda: teacher.from_file(str(tmp_path / "t.pt"), nn.Linear(1, 1)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_weights_that_are_not_finite_are_named_at_loading(
    value: float, dtype: torch.dtype, save: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    broken = STATE | {"bias": torch.tensor([value], dtype=dtype)}
    save(broken, tmp_path / "nan.pt")
    message = r"nan\.pt: bias has 1 values that are not finite; its training has diverged"
    one_line(message, lambda: teacher.from_file(str(tmp_path / "nan.pt"), nn.Linear(1, 1)))
    one_line(message, lambda: require_finite(read_checkpoint(tmp_path / "nan.pt"), tmp_path / "nan.pt"))


DATA: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "Fashion-MNIST": ("train-images-idx3-ubyte.gz", lambda p: read_idx(p, 3)),
    "Fashion-MNIST unpacked": ("train-images-idx3-ubyte", lambda p: read_idx(p, 3)),
    "CIFAR-10": ("cifar-10-python.tar.gz", lambda p: CIFAR10(str(p.parent)).split),
    "zip": ("x.zip", lambda p: ImageZip(str(p))),
    "latents": ("0.safetensors", lambda p: Latents(str(p))),
    "reference": ("r.npz", lambda p: Moments.load(p, 8)),
    "shard of a network": ("model.safetensors", lambda p: fingerprint([p])),
}


@pytest.mark.parametrize(("name", "read"), DATA.values(), ids=DATA)
@pytest.mark.parametrize(
    ("content", "message"),
    [(LFS, "is a pointer of Git LFS"), (b"<!doctype html>", "is a web page"), (b"", "is empty")],
    ids=["pointer", "page", "nothing"],
)
def test_data_that_was_not_downloaded_is_called_what_it_is(
    name: str, read: Callable[[Path], Any], content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    one_line(rf"{re.escape(name)}.*{message}", lambda: read(tmp_path / name))
