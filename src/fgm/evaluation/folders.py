"""Samples as folders of PNGs for other tools, in one of three layouts:

    png        <out>/000000.png                                 torch-fidelity, pytorch-fid, clean-fid: a flat folder
    edm        <out>/00000/img00000000.png                      EDM, SiD: subfolders of a thousand images
    geneval    <out>/00000/samples/00000.png                    GenEval's evaluator, see fgm.evaluation.geneval

png and edm have the labels in a dataset.json, as EDM's tools do.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fgm.data.geneval import Metadata
from fgm.data.pixels import LABELS, encode_png, labels_json
from fgm.evaluation.geneval.folder import write_sample
from fgm.evaluation.sources import SampleSource, batches
from fgm.utils.errors import UserError
from fgm.utils.files import write_bytes

NAMES: dict[str, Callable[[int], str]] = {
    "png": lambda i: f"{i:06d}.png",
    "edm": lambda i: f"{i // 1000:05d}/img{i:08d}.png",
}
LAYOUTS = (*NAMES, "geneval")


def require_empty(out: Path) -> None:
    """Raise a UserError if out holds anything: old images among new ones would be measured with them."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already, and is not written to: delete it or give another out=")


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write to, which is renamed to `out` on success and removed on failure."""
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


def export_images(source: SampleSource, out: Path, layout: str, batch: int) -> None:
    """Write all images of a source, in layout png or edm."""
    name_of, labels = NAMES[layout], []
    with atomic_folder(out) as folder:
        for indices, samples in batches(source, batch):
            for i, image in zip(indices, samples.x, strict=True):
                path = folder / name_of(i)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(image))
            labels += [] if samples.labels is None else [samples.labels]
        content = labels_json(map(name_of, range(source.n)), torch.cat(labels) if labels else None)
        write_bytes(folder / LABELS, content)


def export_geneval(source: SampleSource, out: Path, prompts: Sequence[Metadata], per_prompt: int, batch: int) -> None:
    """Write sample i of the source as sample i modulo per_prompt of prompt i // per_prompt; grey becomes RGB."""
    with atomic_folder(out) as folder:
        for indices, samples in batches(source, batch):
            for i, image in zip(indices, samples.x, strict=True):
                index, ordinal = divmod(i, per_prompt)
                pixels = image.expand(3, -1, -1).movedim(0, -1).contiguous().cpu().numpy()
                write_sample(folder, index, ordinal, prompts[index], pixels)
