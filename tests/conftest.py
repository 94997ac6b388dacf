"""What the tests share: the four paths, float64, and a generator with a fixed seed."""

from collections.abc import Iterator

import pytest
import torch
from torch import Generator

from fgm.paths import Path, RectifiedPath, TrigonometricPath, VarianceExplodingPath, VariancePreservingPath

PATHS = (RectifiedPath(), TrigonometricPath(), VariancePreservingPath(), VarianceExplodingPath())


@pytest.fixture(params=PATHS, ids=["rectified", "trigonometric", "preserving", "exploding"])
def path(request: pytest.FixtureRequest) -> Path:
    """Each of the four paths in turn."""
    return request.param


@pytest.fixture
def generator() -> Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """float64, a seeded global generator and one thread (tensors are small) for a test; see pytestmark of each file."""
    dtype, state, threads = torch.get_default_dtype(), torch.get_rng_state(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)
    torch.set_num_threads(threads)
