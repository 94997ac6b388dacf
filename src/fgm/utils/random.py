"""Random streams that are pure functions of a key.

Training draws from keyed_generator(seed, rank, role, index=step), evaluation from keyed_generator(seed, role,
index=sample). No step uses a global generator, so that resuming is bit-exact, evaluation does not disturb training, and
the number of devices does not change an evaluation.

The key is hashed to a base and the index ADDED to it: torch's CPU generator uses only 32 bits of its seed, and
neighbouring indices then never share a seed, where hashed ones would collide within some 50,000 samples.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Generator, Tensor


def keyed_generator(*key: int | str, index: int, device: torch.device | str = "cpu") -> Generator:
    """Return a generator that depends only on key, index and the kind of device."""
    base = int.from_bytes(blake2b(repr(key).encode(), digest_size=6).digest())
    return torch.Generator(device).manual_seed(base + index)


def on_host(generator: Generator) -> Generator:
    """Return the generator itself if it is on the CPU, else a CPU generator that it seeds."""
    if generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**32, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def sample_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...], role: str = "z") -> Tensor:
    """Return standard normal noise (len(indices), *shape), float32; row i depends only on seed, role and indices[i]."""
    rows = [torch.randn(shape, generator=keyed_generator(seed, role, index=i), dtype=torch.float32) for i in indices]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
