"""Sources of samples by index: a sampler, a data set, a folder of PNGs; and their export as a folder of PNGs.

A sampler's images are quantised to uint8, as a PNG is, before anything measures them, so that an exported folder gets
the numbers of the samples in memory. Points stay float32. The layouts of folders are

    png        <out>/000000.png                                 torch-fidelity, pytorch-fid, clean-fid: a flat folder
    edm        <out>/00000/img00000000.png                      EDM, SiD: subfolders of a thousand images
    geneval    <out>/00000/samples/00000.png                    GenEval's evaluator, see fgm.evaluation.geneval

png and edm have the labels in a dataset.json, as EDM's tools do.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fgm.data import Data
from fgm.data.folders import PngFolder, available
from fgm.data.pixels import LABELS, Rounding, encode_png, labels_json, quantise
from fgm.evaluation.sampling import Conditioning, Sampler, draw
from fgm.utils.errors import UserError
from fgm.utils.files import write_bytes
from fgm.utils.random import keyed_generator

NAMES: dict[str, Callable[[int], str]] = {
    "png": lambda i: f"{i:06d}.png",
    "edm": lambda i: f"{i // 1000:05d}/img{i:08d}.png",
}


@dataclass(frozen=True)
class Samples:
    """x: uint8 images (n, c, h, w) or float32 points (n, d); labels: (n,) int64 or None."""

    x: Tensor
    labels: Tensor | None = None


class SampleSource(Protocol):
    """n samples by index; nfe and weights are those of a Measurement."""

    @property
    def n(self) -> int: ...

    @property
    def nfe(self) -> int: ...

    @property
    def weights(self) -> str: ...

    def take(self, indices: range) -> Samples:
        """Return samples number indices.start to indices.stop - 1."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what defines the samples, as plain containers."""
        ...


def chunks(n: int, size: int) -> list[range]:
    """Cut 0 to n - 1 into ranges of `size`, the last one possibly shorter."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def batches(source: SampleSource, size: int) -> Iterator[tuple[range, Samples]]:
    """Yield all samples of a source with their indices, at most `size` at once."""
    for indices in chunks(source.n, size):
        yield indices, source.take(indices)


@dataclass(frozen=True)
class SamplerSource:
    """n samples of a sampler.

    The sampler is always called on the same batches, whose borders are multiples of `batch`: arithmetic may differ in
    its last bits between batch sizes, but not between ranges that start at such a border.

    Args:
        sampler: the sampler.
        seed: of its noise.
        shape: of one sample.
        conditioning: what each sample is conditioned on.
        batch: samples at once.
        identity: what defines the sampler in addition to its weights, such as its config's digest.
        mode: how images are quantised.
    """

    sampler: Sampler
    seed: int
    n: int
    shape: tuple[int, ...]
    conditioning: Conditioning
    device: torch.device
    batch: int = 1000
    identity: dict[str, Any] = field(default_factory=dict)
    mode: Rounding = "round"

    @property
    def nfe(self) -> int:
        return self.sampler.nfe

    @property
    def weights(self) -> str:
        return self.sampler.weights

    def take(self, indices: range) -> Samples:
        """Draw samples.

        Raises:
            UserError: a sample is not finite, which quantising would turn into pixels.
        """
        index = torch.arange(indices.start, indices.stop)
        x = torch.cat([self.draw(part) for part in index.split(self.batch)])
        broken = (~x.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(broken):
            raise UserError(
                f"{self.sampler.name}: {len(broken)} of the samples {indices.start} to {indices.stop - 1} are not "
                f"finite, number {indices.start + int(broken[0])} first; the weights have diverged: train again, with "
                "a lower learning rate"
            )
        return Samples(quantise(x, self.mode) if len(self.shape) == 3 else x, self.conditioning.labels(index))

    def draw(self, indices: Tensor) -> Tensor:
        condition = self.conditioning.conditions(indices)
        return draw(self.sampler, self.seed, indices, self.shape, condition, self.device)

    def describe(self) -> dict[str, Any]:
        sampler = {"name": self.sampler.name, "nfe": self.nfe, "weights": self.weights, "seed": self.seed}
        where = {"batch": self.batch, "device": self.device.type, "shape": list(self.shape), "quantise": self.mode}
        return {"kind": "sampler", **sampler, **where, "weights_sha256": self.weights_sha256, **self.identity}

    @cached_property
    def weights_sha256(self) -> str:
        return state_sha256(self.sampler.model)


def state_sha256(module: nn.Module) -> str:
    """Return the sha256 of all parameters and buffers, saved or not, with their names.

    It is taken of copies: memory that numpy has seen cannot be freed, as sharded networks need to.
    """
    content = sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().to("cpu", copy=True).contiguous().view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


class DatasetSource:
    """The first n images of a data set, in memory.

    Args:
        images: (n, c, h, w), float in [-1, 1] or uint8.
        labels: (n,) or None.
        name: of data and split.
        n: number of images; all if None.
    """

    nfe, weights = 0, "real"

    def __init__(self, images: Tensor, labels: Tensor | None, name: str, n: int | None = None) -> None:
        self.n, self.name = available(n, len(images), name), name
        self.images = quantise(images[: self.n])
        self.labels = None if labels is None else labels[: self.n]

    @classmethod
    def of_data(cls, data: Data, name: str, split: str, n: int | None) -> "DatasetSource":
        """Return a split of data, or n draws of an unlimited data set, each from its own random stream.

        Raises:
            UserError: no such split, no images, or an unlimited set without n.
        """
        if len(data.shape) != 3:
            raise UserError(f"data = {name}: holds points of shape {tuple(data.shape)}, not images")
        splits = data.split
        if splits is None:
            if n is None:
                raise UserError(f"data = {name} is unlimited: say how many with n=")
            images = [data.draw(1, keyed_generator("reference", index=i))[0] for i in range(n)]
            return cls(torch.cat(images), None, f"{name}, drawn", n)
        if split not in splits:
            raise UserError(f"split = {split}: {name} has {', '.join(splits)}")
        return cls(*splits[split], f"{name}, {split}", n)

    def take(self, indices: range) -> Samples:
        rows = slice(indices.start, indices.stop)
        return Samples(self.images[rows], None if self.labels is None else self.labels[rows])

    def describe(self) -> dict[str, Any]:
        tensors = [self.images, *([] if self.labels is None else [self.labels])]
        digests = [sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in tensors]
        return {"kind": "dataset", "name": self.name, "sha256": digests}


class FolderSource(PngFolder):
    """The images of a folder of PNGs, identified by their pixels and labels."""

    nfe, weights = 0, "folder"

    def take(self, indices: range) -> Samples:
        return Samples(self.read(indices), None if self.labels is None else self.labels[list(indices)])

    def describe(self) -> dict[str, Any]:
        labels = None if self.labels is None else sha256(self.labels.numpy().tobytes()).hexdigest()[:16]
        return {"kind": "folder", "shape": list(self.shape), "sha256": self.sha256, "labels": labels}


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
