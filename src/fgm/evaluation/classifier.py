"""Small classifiers whose penultimate layer serves as feature space for a Fréchet distance.

Each is trained once on its set's training split (`python -m fgm.evaluation.classifier digits`, seeded) and its weights
are shipped, so that a value means the same thing on every machine. The first eight digits of their hash stand in the
protocol's name. The distance is never called FID, which belongs to Inception's features.

    digits    8 x 8      32 features, half a minute of training on two cores
    fashion   28 x 28    64 features, some minutes; give the folder of the IDX files unless they are in Debian's place
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fgm.data.images import Digits
from fgm.data.pixels import dequantise
from fgm.data.published import FashionMNIST
from fgm.utils.errors import UserError, entry, hint
from fgm.utils.random import keyed_generator

Space = Literal["digits", "fashion"]
STEP = 1000  # images at once where all are read


@dataclass(frozen=True)
class Recipe:
    """Of one classifier.

    Attributes:
        id: of its feature space.
        file: of its weights.
        data: makes its training set.
        size: side of its images.
        channels: of its two convolutions.
        first_pool: of the first one; the second one halves.
        features: of its penultimate layer.
        iterations: of its training, 128 images each.
    """

    id: str
    file: str
    data: Callable[..., Any]
    size: int
    channels: tuple[int, int]
    first_pool: bool
    features: int
    iterations: int

    @property
    def weights(self) -> Path:
        return Path(__file__).parent / "weights" / self.file


RECIPES: dict[Space, Recipe] = {
    "digits": Recipe("small-classifier", "digit_classifier.safetensors", Digits, 8, (16, 32), False, 32, 1500),
    "fashion": Recipe(
        "fashion-classifier", "fashion_classifier.safetensors", FashionMNIST, 28, (32, 64), True, 64, 2500
    ),
}


class Classifier(nn.Module):
    """Images (n, 1, size, size) in [-1, 1] -> logits (n, 10); features() are standardised over the training split."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        (low, high), side = recipe.channels, recipe.size // (4 if recipe.first_pool else 2)
        self.body = nn.Sequential(
            nn.Conv2d(1, low, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if recipe.first_pool else []),
            nn.Conv2d(low, high, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(high * side**2, recipe.features), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(recipe.features, 10)
        self.register_buffer("mean", torch.zeros(recipe.features))
        self.register_buffer("std", torch.ones(recipe.features))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        """(n, features), of zero mean and unit variance on the training split."""
        return self.standardise(self.body(x))

    def standardise(self, body: Tensor) -> Tensor:
        return (body - self.get_buffer("mean")) / self.get_buffer("std")


def train_classifier(
    recipe: Recipe, data: Any, iterations: int | None = None, batch_size: int = 128, seed: int = 0
) -> Classifier:
    """Cross-entropy with AdamW and a one-cycle schedule, on the training split alone, under noise of std 0.1."""
    iterations = iterations or recipe.iterations
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Classifier(recipe)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=iterations)
    for i in range(iterations):
        x, labels = data.draw(batch_size, keyed_generator(seed, "classifier", index=i))
        loss = cross_entropy(
            net(x + 0.1 * torch.randn(x.shape, generator=keyed_generator(seed, "blur", index=i))), labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return standardised(net.eval(), data.split["train"][0])


@torch.no_grad()
def standardised(net: Classifier, x: Tensor) -> Classifier:
    """The classifier with its features' moments taken over x, in [-1, 1] or uint8."""
    features = torch.cat([net.body(dequantise(part)) for part in x.split(STEP)])
    net.get_buffer("mean").copy_(features.mean(0))
    net.get_buffer("std").copy_(features.std(0).clamp_min(1e-3))
    return net


@cache
def classifier(space: Space) -> tuple[Classifier, str]:
    """The shipped classifier, frozen, and the first eight hex digits of its file's sha256."""
    recipe = RECIPES[space]
    net = Classifier(recipe)
    net.load_state_dict(load_file(recipe.weights))
    return net.eval().requires_grad_(False), sha256(recipe.weights.read_bytes()).hexdigest()[:8]


@torch.no_grad()
def accuracy(net: Classifier, x: Tensor, labels: Tensor) -> float:
    """Share of x, in [-1, 1] or uint8, that net reads as labels, in [0, 1]."""
    read = torch.cat([net(dequantise(part)).argmax(1) for part in x.split(STEP)])
    return (read == labels).double().mean().item()


def main(arguments: list[str]) -> None:
    space, *places = arguments or ["digits"]
    if space not in RECIPES:
        raise UserError(f"no classifier of {space}; {hint(space, RECIPES)}")
    recipe = RECIPES[space]  # type: ignore[index]
    data = recipe.data(*places)
    trained = train_classifier(recipe, data)
    recipe.weights.parent.mkdir(exist_ok=True)
    save_file(trained.state_dict(), recipe.weights)
    held_out = accuracy(trained, *data.split["test"])
    print(f"wrote {recipe.weights}: accuracy {held_out:.4f} on {len(data.split['test'][0])} held-out images")


if __name__ == "__main__":
    entry(main, __doc__)
