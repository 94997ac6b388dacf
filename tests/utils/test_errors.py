"""Messages: the nearest known name, the telling line of a library's error, the cause of a failed write."""

import errno
import os

import pytest
from torch import nn

from fgm.utils.errors import first_line, hint, last_line, missing_package, unwritable
from fgm.utils.printing import plain_console


@pytest.mark.parametrize(
    "name, known, otherwise, expected",
    [
        ("digit", ["ring", "digits"], "look into configs/", "did you mean digits?"),
        ("zebra", ["ring", "digits"], "", "there are ring, digits"),
        ("zebra", ["ring", "digits"], "look into configs/", "look into configs/"),
        ("zebra", [], "", "there are none"),
        ("trainer.clip", ["trainer.compile", "training.clip"], "", "did you mean training.clip?"),
        ("data.sise", ["network.size", "data.size"], "", "did you mean data.size?"),
    ],
)
def test_a_hint_is_the_nearest_name_or_all_names(name: str, known: list[str], otherwise: str, expected: str) -> None:
    assert hint(name, iter(known), otherwise) == expected


def test_the_last_line_of_a_state_dict_error_names_the_weights() -> None:
    with pytest.raises(RuntimeError) as error:
        nn.Linear(1, 1).load_state_dict({"weight": nn.Linear(1, 1).weight})
    assert first_line(error.value) == "Error(s) in loading state_dict for Linear:"
    assert last_line(error.value) == 'Missing key(s) in state_dict: "bias".'
    assert (first_line(EOFError()), last_line(EOFError())) == ("", "EOFError")


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")
    wrapped = RuntimeError("unexpected pos 64 vs 0")
    wrapped.__context__ = full
    line = "last.ckpt: No space left on device: free some space"
    assert unwritable(full) == unwritable(wrapped) == line
    assert unwritable(RuntimeError("io error: (os error 28)")) == "No space left on device: free some space"
    assert unwritable(RuntimeError("another error")) is None


def test_printed_text_is_unchanged_by_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "pip install -e '.[dashboard]', then look into [/tmp/x] for [red]"
    plain_console().print(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_circle_of_causes_is_followed_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__cause__ = second, first
    assert missing_package(first) is None
    second.__context__ = ModuleNotFoundError("no diffusers", name="diffusers")
    second.__cause__ = second.__context__
    assert missing_package(first) == "diffusers"
