"""Latents of an autoencoder, encoded once and kept in safetensors files, as a data set.

    latents       (n, channels, height, width), any float type: x_0 as the network knows it. For Stable Diffusion 3 that
                  is (latent - shift_factor) scaling_factor, with both from the autoencoder's config.json
    conditions    (n, ...) int64: what each was drawn under, in the form in which the network takes it; may be missing

A directory's files count in the order of their names. They are mapped into memory, not read, but for one look at
every number when the set is opened. Images (n, 3, size, size) in [-1, 1] become such a file by

    latents = fgm.networks.latents.Autoencoder("<SD3's directory>").cuda().encode(images)
    safetensors.torch.save_file({"latents": latents.cpu().contiguous()}, "latents/00000.safetensors")
"""

from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Generator, Tensor

from fgm.data import measured_std
from fgm.data.held import with_replacement
from fgm.utils.errors import UserError

MEASURED = 1000  # latents from which std is taken


class Latents:
    """Latents drawn with replacement, float32.

    Args:
        path: a safetensors file, or a directory of them.

    Raises:
        UserError: none are there, one is damaged, not finite, or unlike the others.
    """

    num_classes = 0

    def __init__(self, path: str) -> None:
        self.files = files_of(Path(path))
        self.parts = [read(file) for file in self.files]
        for file, part in zip(self.files, self.parts, strict=True):
            require_alike(file, part, self.files[0], self.parts[0])
        self.shape, self.conditioned = tuple(self.parts[0]["latents"].shape[1:]), "conditions" in self.parts[0]
        self.ends = torch.tensor([len(part["latents"]) for part in self.parts]).cumsum(0)

    @property
    def n(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def std(self) -> float:
        return measured_std(self.reference, MEASURED)

    def rows(self, name: str, chosen: Tensor) -> Tensor:
        """Those of latents or conditions, by their numbers over all files."""
        owners = torch.bucketize(chosen, self.ends, right=True)
        firsts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])
        places = zip(owners.tolist(), (chosen - firsts[owners]).tolist(), strict=True)
        return torch.stack([self.parts[owner][name][row] for owner, row in places])

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        chosen = with_replacement(self.n, n, generator)
        return self.rows("latents", chosen).float(), self.rows("conditions", chosen) if self.conditioned else None

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        """Those of n latents."""
        if not self.conditioned:
            return None
        return self.rows("conditions", with_replacement(self.n, n, generator)).to(generator.device)

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.draw(n, generator)[0]


def files_of(path: Path) -> list[Path]:
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] * path.is_file()
    if not found:
        raise UserError(f"{path} holds no safetensors files of latents: encode the images first")
    return found


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        with safe_open(file, "pt") as opened:
            part = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: is no whole safetensors file ({error}); encode its images again") from error
    latents, conditions = part.get("latents"), part.get("conditions")
    if latents is None or latents.ndim != 4 or not latents.is_floating_point() or not len(latents):
        raise UserError(
            f"{file}: needs a tensor `latents`, (n, channels, height, width) and float; it has {told(part)}"
        )
    if conditions is not None and (len(conditions) != len(latents) or conditions.dtype != torch.int64):
        raise UserError(f"{file}: `conditions` must be int64 with a row for each latent; it has {told(part)}")
    broken = (~latents.flatten(1).isfinite().all(1)).nonzero()
    if len(broken):
        raise UserError(
            f"{file}: latent {int(broken[0])} is not finite, one of {len(broken)}; encode those images again"
        )
    return part


def require_alike(file: Path, part: dict[str, Tensor], first_file: Path, first: dict[str, Tensor]) -> None:
    shapes = [{name: tuple(tensor.shape[1:]) for name, tensor in p.items()} for p in (part, first)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{file}: has {told(part)}, and {first_file.name} {told(first)}; all files must be alike")


def told(part: dict[str, Tensor]) -> str:
    kinds = [f"{name} {tuple(tensor.shape)} {str(tensor.dtype)[6:]}" for name, tensor in part.items()]
    return ", ".join(kinds) or "nothing"
