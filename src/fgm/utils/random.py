"""Random streams as pure functions of a key: who draws does not matter, only what is drawn.

Training draws keyed_generator(seed, rank, role, index=cycle); evaluation draws
keyed_generator(seed, role, index=sample). No step touches
a global generator, so that resuming is exact, evaluating leaves training as it was, and the number of devices does not
change an evaluation.

The key is hashed to a base and the index ADDED to it: torch's CPU generator reads 32 bits of its seed alone, and
neighbouring indices then never share a seed, where hashed ones would collide within some 50,000 samples.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Generator, Tensor


def keyed_generator(*key: int | str, index: int, device: torch.device | str = "cpu") -> Generator:
    """A generator that depends on key and index alone, and on the kind of device."""
    base = int.from_bytes(blake2b(repr(key).encode(), digest_size=6).digest())
    return torch.Generator(device).manual_seed(base + index)


def on_host(generator: Generator) -> Generator:
    """The generator itself where it lives on the CPU; else one there that it seeds, for what is made on the host."""
    if generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**32, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def sample_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...], role: str = "z") -> Tensor:
    """Standard normal noise (len(indices), *shape), float32; row i depends on seed, role and indices[i] alone."""
    rows = [torch.randn(shape, generator=keyed_generator(seed, role, index=i), dtype=torch.float32) for i in indices]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
