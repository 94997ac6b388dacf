"""Where an evaluation's numbers come from: the key under which its shards are kept, and its results.json.

    schema, key, date, commit
    results        measurements
    evaluation     what the key hashes: source, suite, n, shard_size, and the code that ran
    env            torch, torchmetrics, torch_fidelity, python, device, world_size, tf32
    timing_s       wall seconds of this call, and how many shards it computed and found

Two evaluations have one key only if source, suite, n, cut and code are the same, so that no shard is ever mixed with
another evaluation's. The code counts by its hash: after a change of fgm, or of torch, nothing old is taken up again.
"""

import json
import platform
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fgm.utils.records import Measurement

SCHEMA = 1
PACKAGES = {"torchmetrics": "torchmetrics", "torch_fidelity": "torch-fidelity"}


def definition(source: dict[str, Any], suite: dict[str, Any], n: int, shard_size: int) -> dict[str, Any]:
    """All that defines an evaluation, as plain containers."""
    code = {"fgm": code_digest(), "torch": torch.__version__}
    samples = {"n": n, "index_range": [0, n], "shard_size": shard_size}
    return {"source": source, "suite": suite, **samples, "code": code}


def key_of(evaluation: dict[str, Any]) -> str:
    """Sixteen hex digits."""
    return sha256(json.dumps(evaluation, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """Of fgm's own source files."""
    root, content = Path(__file__).parents[1], sha256()
    for path in sorted(root.rglob("*.py")):
        content.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return content.hexdigest()[:16]


def record(
    evaluation: dict[str, Any],
    results: list[Measurement],
    device: torch.device,
    world_size: int,
    timing: dict[str, Any],
) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "schema": SCHEMA, "key": key_of(evaluation), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": [m.row() for m in results], "evaluation": evaluation,
        "env": environment(device, world_size), "timing_s": timing,
    }  # fmt: skip


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    told = {"torch": torch.__version__, "python": platform.python_version(), "device": device_name(device)}
    tf32 = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    versions = {key: version_of(package) for key, package in PACKAGES.items()}
    return told | {"world_size": world_size, "tf32": tf32} | versions


def device_name(device: torch.device) -> str:
    """As rows and results.json have it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}"


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
