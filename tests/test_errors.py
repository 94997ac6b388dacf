"""What is said: the nearest known name or all, the telling line of a library's complaint, and no letter less."""

import pytest
from torch import nn

from fgm.utils.errors import first_line, hint, last_line
from fgm.utils.printing import plain_console


@pytest.mark.parametrize(
    "name, known, otherwise, said",
    [
        ("digit", ["ring", "digits"], "", "did you mean digits?"),
        ("digit", ["ring", "digits"], "look into configs/", "did you mean digits?"),
        ("zebra", ["ring", "digits"], "", "there are ring, digits"),
        ("zebra", ["ring", "digits"], "look into configs/", "look into configs/"),
        ("zebra", [], "", "there are none"),
        ("training.learning_rate", ["training.micro_batches", "optimizer.lr"], "", "did you mean optimizer.lr?"),
        (
            "trainer.clip",
            ["trainer.compile", "training.gradient_clip_val"],
            "",
            "did you mean training.gradient_clip_val?",
        ),
        ("data.sise", ["network.size", "data.size"], "", "did you mean data.size?"),
        (
            "training.zebra",
            ["training.max_steps", "training.gradient_clip_val"],
            "look into configs/",
            "look into configs/",
        ),
    ],
)
def test_a_hint_is_the_nearest_name_or_what_there_is(name: str, known: list[str], otherwise: str, said: str) -> None:
    assert hint(name, iter(known), otherwise) == said


def test_of_a_complaint_the_line_that_tells() -> None:
    with pytest.raises(RuntimeError) as complaint:
        nn.Linear(1, 1).load_state_dict({"weight": nn.Linear(1, 1).weight})
    assert first_line(complaint.value) == "Error(s) in loading state_dict for Linear:"
    assert last_line(complaint.value) == 'Missing key(s) in state_dict: "bias".'
    assert (first_line(EOFError()), last_line(EOFError())) == ("", "EOFError")


def test_what_is_printed_is_said_letter_by_letter(capsys: pytest.CaptureFixture[str]) -> None:
    said = "pip install -e '.[dashboard]', then look into [/tmp/x] for [red]"
    plain_console().print(said)
    assert capsys.readouterr().out == f"{said}\n"
