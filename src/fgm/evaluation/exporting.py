"""Samples as PNGs for other tools, in a layout of layouts.py; png and edm with the labels as EDM's tools tell them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fgm.data.geneval import Metadata
from fgm.data.pixels import LABELS, encode_png, labels_json
from fgm.evaluation.geneval.folder import write_sample
from fgm.evaluation.layouts import NAMES, whole_or_absent
from fgm.evaluation.sources import Samples, SampleSource, in_steps
from fgm.utils.files import write_bytes


def export_images(source: SampleSource, out: Path, layout: str, step: int) -> None:
    """All samples of a source of images, in layout png or edm; `step` of them are taken at once."""
    name_of, labels = NAMES[layout], []
    with whole_or_absent(out) as folder:
        for indices, samples in in_steps(source, step):
            write_images(folder, [name_of(i) for i in indices], samples)
            labels += [] if samples.labels is None else [samples.labels]
        told = labels_json(map(name_of, range(source.n)), torch.cat(labels) if labels else None)
        write_bytes(folder / LABELS, told)


def write_images(folder: Path, names: Sequence[str], samples: Samples) -> None:
    for name, image in zip(names, samples.x, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))


def export_geneval(source: SampleSource, out: Path, prompts: Sequence[Metadata], per_prompt: int, step: int) -> None:
    """Sample i of the source is sample i modulo per_prompt of prompt i // per_prompt; grey becomes RGB."""
    with whole_or_absent(out) as folder:
        for indices, samples in in_steps(source, step):
            for i, image in zip(indices, samples.x, strict=True):
                index, ordinal = divmod(i, per_prompt)
                pixels = image.expand(3, -1, -1).movedim(0, -1).contiguous().cpu().numpy()
                write_sample(folder, index, ordinal, prompts[index], pixels)
