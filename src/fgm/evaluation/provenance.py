"""Where an evaluation's numbers come from: the content of its results.json.

schema, key, date
results        measurements
evaluation     what defines them: source, suite, n, chunk; the key is its hash
env            torch, torchmetrics, torch_fidelity, python, device, world_size, tf32
timing_s       wall seconds
"""

import json
import platform
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from fgm.utils.records import Measurement

SCHEMA = 2


def definition(source: dict[str, Any], suite: dict[str, Any], n: int, chunk: int) -> dict[str, Any]:
    """Return what defines an evaluation of n samples, `chunk` at once, as plain containers."""
    return {"source": source, "suite": suite, "n": n, "chunk": chunk, "torch": torch.__version__}


def key_of(evaluation: dict[str, Any]) -> str:
    """Return sixteen hex digits."""
    return sha256(json.dumps(evaluation, sort_keys=True).encode()).hexdigest()[:16]


def record(
    evaluation: dict[str, Any],
    results: list[Measurement],
    device: torch.device,
    world_size: int,
    timing: dict[str, Any],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "key": key_of(evaluation), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": [m.row() for m in results], "evaluation": evaluation,
        "env": environment(device, world_size), "timing_s": timing,
    }  # fmt: skip


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    tf32 = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    versions = {name.replace("-", "_"): version_of(name) for name in ("torchmetrics", "torch-fidelity")}
    where = {"device": device_name(device), "world_size": world_size, "tf32": tf32}
    return {"torch": torch.__version__, "python": platform.python_version(), **where, **versions}


def device_name(device: torch.device) -> str:
    """Return the device as rows and results.json state it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}"


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
