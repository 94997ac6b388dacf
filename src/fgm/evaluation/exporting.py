"""Samples as PNGs for other tools, in one of three layouts:

    png        <out>/000000.png                                 torch-fidelity, pytorch-fid, clean-fid: a flat folder
    edm        <out>/00000/img00000000.png                      EDM, SiD: subfolders of a thousand images
    geneval    <out>/00000/samples/00000.png                    GenEval's evaluator (geneval/layout.py)

The first two come with dataset.json, which tells the labels as EDM's tools do. A folder is whole or absent: images are
written beside it and the folder is renamed once the last one is there. One that holds anything is not written to.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fgm.errors import Refusal
from fgm.evaluation.geneval.files import write_bytes
from fgm.evaluation.geneval.layout import write_sample
from fgm.evaluation.geneval.prompts import Metadata
from fgm.evaluation.png import LABELS, encode, labels_json
from fgm.evaluation.sources import Samples, SampleSource

NAMES: dict[str, Callable[[int], str]] = {
    "png": lambda i: f"{i:06d}.png",
    "edm": lambda i: f"{i // 1000:05d}/img{i:08d}.png",
}
FORMATS = (*NAMES, "geneval")


def require_empty(out: Path) -> None:
    """Refuse a place that holds something: old images among new ones would be measured with them."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise Refusal(f"{out} is there already, and is not written to: delete it or give another out=")


def export_images(source: SampleSource, out: Path, layout: str, step: int = 1000) -> None:
    """All samples of a source of images, in layout png or edm."""
    name_of = NAMES[layout]
    labels = []
    with whole_or_absent(out) as folder:
        for indices, samples in in_steps(source, step):
            for i, image in zip(indices, samples.x, strict=True):
                path = folder / name_of(i)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(image))
            labels += [] if samples.labels is None else [samples.labels]
        told = torch.cat(labels) if labels else None
        write_bytes(folder / LABELS, labels_json(map(name_of, range(source.n)), told))


def export_geneval(
    source: SampleSource, out: Path, prompts: Sequence[Metadata], per_prompt: int, step: int = 1000
) -> None:
    """Sample i of the source is sample i modulo per_prompt of prompt i // per_prompt."""
    with whole_or_absent(out) as folder:
        for indices, samples in in_steps(source, step):
            for i, image in zip(indices, samples.x, strict=True):
                index, ordinal = divmod(i, per_prompt)
                write_sample(folder, index, ordinal, prompts[index], rgb(image).movedim(0, -1).contiguous().numpy())


def rgb(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1)


def in_steps(source: SampleSource, step: int) -> Iterator[tuple[range, Samples]]:
    for start in range(0, source.n, step):
        indices = range(start, min(start + step, source.n))
        yield indices, source.take(indices)


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
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
