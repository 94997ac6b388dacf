"""What W&B is told everywhere, and whether it can be reached from here, found without importing it."""

import os
from importlib.util import find_spec
from pathlib import Path

PROJECT = "fgm"
AXIS = "cycle"  # of every curve: finished cycles


def final(metric: str, *sampler: str | int) -> str:
    """What a run's summary calls a measurement at its end: of its first sampler, or of the one of (weights, nfe)."""
    return "/".join(map(str, ("final", metric, *sampler)))


def wandb_works() -> bool:
    """Whether a W&B run can start here without asking anybody."""
    return find_spec("wandb") is not None and (mode() == "offline" or has_account())


def has_account() -> bool:
    """Whether W&B's servers may be asked, and know who asks."""
    key = os.environ.get("WANDB_API_KEY") or "api.wandb.ai" in netrc()
    return mode() == "online" and bool(key)


def mode() -> str:
    return os.environ.get("WANDB_MODE", "online")


def netrc() -> str:
    path = Path.home() / ".netrc"
    return path.read_text() if path.is_file() else ""
