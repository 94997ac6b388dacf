"""Where exported images go, in one of three layouts:

    png        <out>/000000.png                                 torch-fidelity, pytorch-fid, clean-fid: a flat folder
    edm        <out>/00000/img00000000.png                      EDM, SiD: subfolders of a thousand images
    geneval    <out>/00000/samples/00000.png                    GenEval's evaluator (geneval/layout.py)

A folder is whole or absent: images are written beside it, and what they are in is renamed once the last one is there.
One that holds anything is not written to: old images among new ones would be measured with them.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fgm.utils.errors import UserError

NAMES: dict[str, Callable[[int], str]] = {
    "png": lambda i: f"{i:06d}.png",
    "edm": lambda i: f"{i // 1000:05d}/img{i:08d}.png",
}
LAYOUTS = (*NAMES, "geneval")


def require_empty(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already, and is not written to: delete it or give another out=")


@contextmanager
def whole_or_absent(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` if nothing goes wrong and else vanishes."""
    require_empty(out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
