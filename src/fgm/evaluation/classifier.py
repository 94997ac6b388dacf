"""Small classifiers whose penultimate layer is a feature space for a Fréchet distance, which is therefore not an FID.

Each was trained once on the training split of its data set, from a fixed seed; its weights come with the package, so
that a value means the same everywhere, and the first eight digits of their hash are part of the protocol.
`python -m fgm.evaluation.classifier digits` trains one again: half a minute for digits, some minutes for fashion.
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

Dataset = Literal["digits", "fashion"]
BATCH = 1000  # images at once when a whole split is read


@dataclass(frozen=True)
class ClassifierConfig:
    """One classifier: the name of its feature space and of its file of weights, its training set, and its sizes."""

    id: str
    file: str
    data: Callable[..., Any]
    side: int  # of its images
    channels: tuple[int, int]  # of its two convolutions
    first_pool: bool  # whether the first convolution is pooled; the second one always is
    features: int  # of its penultimate layer
    iterations: int  # of training, 128 images each

    @property
    def weights(self) -> Path:
        return Path(__file__).parent / "weights" / self.file


CLASSIFIERS: dict[Dataset, ClassifierConfig] = {
    "digits": ClassifierConfig(
        "small-classifier", "digit_classifier.safetensors", Digits, 8, (16, 32), False, 32, 1500
    ),
    "fashion": ClassifierConfig(
        "fashion-classifier", "fashion_classifier.safetensors", FashionMNIST, 28, (32, 64), True, 64, 2500
    ),
}


class Classifier(nn.Module):
    """Maps images (n, 1, side, side) in [-1, 1] to logits (n, 10)."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        (low, high), side = config.channels, config.side // (4 if config.first_pool else 2)
        self.body = nn.Sequential(
            nn.Conv2d(1, low, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if config.first_pool else []),
            nn.Conv2d(low, high, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(high * side**2, config.features), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(config.features, 10)
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("std", torch.ones(config.features))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        """Return features (n, d), of zero mean and unit variance on the training split."""
        return self.standardise(self.body(x))

    def standardise(self, body: Tensor) -> Tensor:
        return (body - self.get_buffer("mean")) / self.get_buffer("std")


def train_classifier(
    config: ClassifierConfig, data: Any, iterations: int | None = None, batch_size: int = 128, seed: int = 0
) -> Classifier:
    """Minimise cross-entropy on noisy training images (std 0.1) by AdamW with a one-cycle schedule."""
    iterations = iterations or config.iterations
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Classifier(config)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=iterations)
    for i in range(iterations):
        x, labels = data.draw(batch_size, keyed_generator(seed, "classifier", index=i))
        noise = torch.randn(x.shape, generator=keyed_generator(seed, "blur", index=i))
        loss = cross_entropy(net(x + 0.1 * noise), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return measure_features(net.eval(), data.split["train"][0])


@torch.no_grad()
def measure_features(net: Classifier, x: Tensor) -> Classifier:
    """Set the mean and standard deviation of the features to those over images x, in [-1, 1] or uint8."""
    features = torch.cat([net.body(dequantise(part)) for part in x.split(BATCH)])
    net.get_buffer("mean").copy_(features.mean(0))
    net.get_buffer("std").copy_(features.std(0).clamp_min(1e-3))
    return net


@cache
def load_classifier(dataset: Dataset) -> tuple[Classifier, str]:
    """Return the packaged classifier, frozen, and the first eight hex digits of its file's sha256."""
    config = CLASSIFIERS[dataset]
    net = Classifier(config)
    net.load_state_dict(load_file(config.weights))
    return net.eval().requires_grad_(False), sha256(config.weights.read_bytes()).hexdigest()[:8]


@torch.no_grad()
def accuracy(net: Classifier, x: Tensor, labels: Tensor) -> float:
    """Return the share of images x, in [-1, 1] or uint8, that net classifies as labels."""
    predicted = torch.cat([net(dequantise(part)).argmax(1) for part in x.split(BATCH)])
    return (predicted == labels).double().mean().item()


def main(arguments: list[str]) -> None:
    dataset, *places = arguments or ["digits"]
    if dataset not in CLASSIFIERS:
        raise UserError(f"no classifier of {dataset}; {hint(dataset, CLASSIFIERS)}")
    config = CLASSIFIERS[dataset]  # type: ignore[index]
    data = config.data(*places)
    net = train_classifier(config, data)
    config.weights.parent.mkdir(exist_ok=True)
    save_file(net.state_dict(), config.weights)
    print(f"{config.weights}: accuracy {accuracy(net, *data.split['test']):.4f} on the test split")


if __name__ == "__main__":
    entry(main, __doc__)
