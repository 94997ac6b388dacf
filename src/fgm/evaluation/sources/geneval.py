"""The images of a GenEval layout: index i is sample i modulo per_prompt of prompt i // per_prompt."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from fgm.evaluation.geneval.layout import read_layout
from fgm.evaluation.sources import Samples
from fgm.pixels.folder import require_alike
from fgm.text.geneval.prompts import Metadata, digest


class GenEvalSource:
    """A complete layout.

    Args:
        directory: holds 00000/samples and so on.
        prompts: what was asked for.
        per_prompt: samples of each.
    """

    nfe, weights = 0, "folder"

    def __init__(self, directory: Path, prompts: Sequence[Metadata], per_prompt: int) -> None:
        self.directory, self.prompts, self.per_prompt = directory, list(prompts), per_prompt
        self.samples = read_layout(directory, prompts, per_prompt)
        self.n = len(self.samples)

    def take(self, indices: range) -> Samples:
        """Images (n, 3, h, w); grey ones and ones with alpha are read as RGB, as GenEval does."""
        first = self.samples[0].path
        shape = self.samples[0].pixels().shape
        images = []
        for sample in self.samples[indices.start : indices.stop]:
            pixels = sample.pixels()
            require_alike((3, *pixels.shape[:2]), (3, *shape[:2]), sample.path, first)
            images.append(torch.tensor(pixels).movedim(-1, 0))
        return Samples(torch.stack(images))

    def describe(self) -> dict[str, Any]:
        content = sha256()
        for sample in self.samples:
            content.update(sample.path.read_bytes())
        asked = {"prompts": digest(self.prompts), "per_prompt": self.per_prompt}
        return {"kind": "geneval", "sha256": content.hexdigest(), **asked}
