"""scikit-learn's digits: 1,797 scanned handwritten digits of 8 x 8 pixels, bundled with the library."""

from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from fgm.data.held import class_by_class, with_replacement

TEST_SHARE = 5  # every fifth scan of a class is held out


class Digits:
    """Grey images (1, 8, 8) in [-1, 1], ten classes; 1,433 scans to train on and 364 held out."""

    shape = (1, 8, 8)
    num_classes = 10

    @cached_property
    def split(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images and labels, keyed train and test; the split is fixed and stratified."""
        from sklearn.datasets import load_digits  # a second to import, needed here alone

        pixels, labels = map(np.asarray, load_digits(return_X_y=True))
        held_out = np.zeros(len(labels), dtype=bool)
        for label in range(10):
            held_out[np.flatnonzero(labels == label)[::TEST_SHARE]] = True
        images = torch.tensor(pixels / 8 - 1, dtype=torch.float32).reshape(-1, *self.shape)
        return {
            name: (images[mask], torch.tensor(labels[mask]))
            for name, mask in (("train", ~held_out), ("test", held_out))
        }

    @property
    def std(self) -> float:
        return self.split["train"][0].std().item()

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        images, labels = self.split["train"]
        chosen = with_replacement(len(images), n, generator)
        return images[chosen], labels[chosen]

    def conditions(self, n: int, generator: Generator) -> Tensor:
        """Labels, uniform."""
        return torch.randint(self.num_classes, (n,), generator=generator, device=generator.device)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Held-out scans, class by class: row i is of class i modulo ten."""
        del generator
        images, labels = self.split["test"]
        return images[class_by_class(labels, self.num_classes, n)]
