"""What the tests share: the four paths, float64, a generator with a fixed seed, and a finished run with its samples."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import Generator

from fgm.cli import config
from fgm.flow.paths import (
    ProbabilityPath,
    RectifiedPath,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from fgm.utils.errors import SIGNALS

PATHS = (RectifiedPath(), TrigonometricPath(), VariancePreservingPath(), VarianceExplodingPath())

for number in SIGNALS:  # those that nohup or a shell's & had the suite ignore would be ignored by what it starts, too
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


@pytest.fixture(params=PATHS, ids=["rectified", "trigonometric", "preserving", "exploding"])
def path(request: pytest.FixtureRequest) -> ProbabilityPath:
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


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Of signals: as they were before, also where a command that was run has set its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def autograd_can_be_forked() -> None:
    """Run a first backward on the CPU: one on fake GPUs would start threads for them, after which no fork trains."""
    torch.ones((), requires_grad=True).backward()


@pytest.fixture(scope="session", autouse=True)
def plain_configs_composed_once() -> Iterator[None]:
    """Compose an experiment without overrides once: every config is compared with it, a quarter of the suite's time."""
    plain, known = config.plain, {}

    def cached(experiment: str) -> dict[str, Any]:
        hydra = GlobalHydra.instance()
        places = f"{hydra.config_loader().get_search_path()}" if hydra.is_initialized() else f"{config.CONFIGS}"
        if (experiment, places) not in known:
            known[experiment, places] = plain(experiment)
        return known[experiment, places]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "plain", cached)
        yield


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments that name a finished run of random weights."""
    from tiny_runs import TINY, finished

    return finished(tmp_path_factory.mktemp("run") / "outputs", "digits_fgm", TINY)


@pytest.fixture(scope="module")
def digits_png(digits_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its samples."""
    import fgm.cli.export

    folder = tmp_path_factory.mktemp("samples") / "png"
    fgm.cli.export.main([*digits_run, "format=png", f"out={folder}"])
    return folder
