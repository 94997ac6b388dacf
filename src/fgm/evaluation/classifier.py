"""A small digit classifier whose penultimate layer serves as feature space for a Fréchet distance.

It is trained once on the training split (`python -m fgm.evaluation.classifier`, seeded) and its weights are shipped, so
that a value means the same thing on every machine. The first eight digits of their hash stand in the protocol's name.
The distance is never called FID, which belongs to Inception's features.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fgm.data.digits import Digits
from fgm.streams import stream

WEIGHTS = Path(__file__).parent / "weights" / "digit_classifier.safetensors"


class DigitClassifier(nn.Module):
    """Images (n, 1, 8, 8) in [-1, 1] -> logits (n, 10); features() are standardised over the training split."""

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 16, features), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(features, 10)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        """(n, features), of zero mean and unit variance on the training split."""
        return self.standardise(self.body(x))

    def standardise(self, body: Tensor) -> Tensor:
        return (body - self.get_buffer("mean")) / self.get_buffer("std")


def train_classifier(iterations: int = 1500, batch_size: int = 128, seed: int = 0) -> DigitClassifier:
    """Cross-entropy with AdamW and a one-cycle schedule, on the training split alone; half a minute on two cores."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, data = DigitClassifier(), Digits()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=iterations)
    for i in range(iterations):
        x, labels = data.draw(batch_size, stream(seed, "classifier", index=i))
        loss = cross_entropy(net(x + 0.1 * torch.randn(x.shape, generator=stream(seed, "blur", index=i))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return standardised(net.eval(), data.split["train"][0])


@torch.no_grad()
def standardised(net: DigitClassifier, x: Tensor) -> DigitClassifier:
    """The classifier with its features' moments taken over x."""
    features = net.body(x)
    net.get_buffer("mean").copy_(features.mean(0))
    net.get_buffer("std").copy_(features.std(0).clamp_min(1e-3))
    return net


@cache
def digit_classifier() -> tuple[DigitClassifier, str]:
    """The shipped classifier, frozen, and the first eight hex digits of its file's sha256."""
    net = DigitClassifier()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval().requires_grad_(False), sha256(WEIGHTS.read_bytes()).hexdigest()[:8]


@torch.no_grad()
def accuracy(net: DigitClassifier, x: Tensor, labels: Tensor) -> float:
    """Share of x that net reads as labels, in [0, 1]."""
    return (net(x).argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    trained = train_classifier()
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(trained.state_dict(), WEIGHTS)
    held_out = accuracy(trained, *Digits().split["test"])
    print(f"wrote {WEIGHTS}: accuracy {held_out:.4f} on {len(Digits().split['test'][0])} held-out scans")
