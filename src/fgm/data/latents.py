"""Latents of an autoencoder, encoded once and stored in safetensors files, as a data set.

    latents       (n, channels, height, width), any float type: x_0 as the network takes it. For Stable Diffusion 3 that
                  is (latent - shift_factor) scaling_factor, with both from the autoencoder's config.json
    conditions    (n, ...) int64, optional: the condition of each latent, as the network takes it

A directory's files are concatenated in the order of their names, and memory-mapped. Make such a file from images
(n, 3, size, size) in [-1, 1] by

    latents = fgm.data.autoencoder.Autoencoder("<SD3's directory>").cuda().encode(images)
    safetensors.torch.save_file({"latents": latents.cpu().contiguous()}, "latents/00000.safetensors")
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Generator, Tensor

from fgm.data import Data
from fgm.data.images import random_indices
from fgm.utils.errors import UserError
from fgm.utils.files import damage_of
from fgm.utils.validation import validated


@validated
class Latents(Data):
    """Latents (n, c, h, w), float32, drawn with replacement.

    Args:
        path: a safetensors file, or a directory of them.

    Raises:
        UserError: no files, a damaged one, values that are not finite, or files of different shapes.
    """

    std_examples = 1000

    def __init__(self, path: str) -> None:
        files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]
        if not files or not files[0].is_file():
            raise UserError(f"{path}: no safetensors files of latents; encode the images first")
        self.parts = [read_latents(file) for file in files]
        for file, part in zip(files, self.parts, strict=True):
            if shapes(part) != shapes(self.parts[0]):
                raise UserError(f"{file}: {describe(part)}, but {files[0].name}: {describe(self.parts[0])}")
        self.shape, self.conditioned = tuple(self.parts[0]["latents"].shape[1:]), "conditions" in self.parts[0]
        self.ends = torch.tensor([len(part["latents"]) for part in self.parts]).cumsum(0)

    def rows(self, name: str, indices: Tensor) -> Tensor:
        """Return rows of latents or conditions by their indices over all files."""
        owners = torch.bucketize(indices, self.ends, right=True)
        starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])
        places = zip(owners.tolist(), (indices - starts[owners]).tolist(), strict=True)
        return torch.stack([self.parts[owner][name][row] for owner, row in places])

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        chosen = random_indices(int(self.ends[-1]), n, generator)
        return self.rows("latents", chosen).float(), self.rows("conditions", chosen) if self.conditioned else None

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        """Return the conditions of n random latents."""
        if not self.conditioned:
            return None
        return self.rows("conditions", random_indices(int(self.ends[-1]), n, generator)).to(generator.device)

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.draw(n, generator)[0]


def read_latents(file: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, memory-mapped, after a check of their types, shapes and values."""
    try:
        with safe_open(file, "pt") as opened:
            part = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: damaged safetensors file ({damage_of(file, error)}); encode its images again"
        ) from error
    latents, conditions = part.get("latents"), part.get("conditions")
    if latents is None or latents.ndim != 4 or not latents.is_floating_point() or not len(latents):
        raise UserError(f"{file}: needs float `latents` (n, channels, height, width); has {describe(part)}")
    if conditions is not None and (len(conditions) != len(latents) or conditions.dtype != torch.int64):
        raise UserError(f"{file}: `conditions` must be int64 with a row for each latent; has {describe(part)}")
    broken = (~latents.flatten(1).isfinite().all(1)).nonzero()
    if len(broken):
        raise UserError(
            f"{file}: {len(broken)} latents are not finite, the first is {int(broken[0])}; encode them again"
        )
    return part


def shapes(part: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape[1:]) for name, tensor in part.items()}


def describe(part: dict[str, Tensor]) -> str:
    kinds = [f"{name} {tuple(tensor.shape)} {str(tensor.dtype)[6:]}" for name, tensor in part.items()]
    return ", ".join(kinds) or "no tensors"
