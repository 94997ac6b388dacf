"""python -m fgm.cli.cache_prompts experiment=sd3_fgm [device=auto|cpu|cuda] [batch=32]: encode prompts, once.

Training reads the cache and never loads an encoder. The same command again resumes at the shard where it stopped. The
experiment's settings: data.cache.prompts (which prompts), data.cache.directory, data.cache.model. With
evaluation=geneval evaluation.suite.metadata=<file>, GenEval's prompts are encoded too, for evaluation only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt
from rich.console import Console
from rich.progress import Progress

from fgm.cli.checks import make
from fgm.cli.command import Command
from fgm.data.encodings import INDEX, CacheIndex, PromptCache
from fgm.teachers import require_models
from fgm.teachers.diffusers.conditions import PromptFile
from fgm.utils.errors import UserError
from fgm.utils.printing import plain_console


@dataclass(frozen=True)
class Settings:
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: PositiveInt = 32


def run(config: dict[str, Any], settings: Settings) -> None:
    cache = cache_of(config)
    if cache is None:
        raise UserError(f"{config['experiment']} uses no prompts; sd3_fgm does")
    if not isinstance(cache, PromptCache):
        raise UserError(f"{config['experiment']} reads the file of encoded prompts that docs/teachers.md makes")
    console = plain_console()
    if (Path(cache.directory) / INDEX).exists():
        console.print(describe(cache, cache.read_index(), "is done"))
    else:
        console.print(describe(cache, encode(cache, settings, console), "is written"))


def cache_of(config: dict[str, Any]) -> PromptCache | PromptFile | None:
    """Return the cache of encoded prompts that an experiment uses, if any."""
    node = config["data"].get("cache")
    return make(node, "data.cache") if isinstance(node, dict) else None


def require(config: dict[str, Any]) -> None:
    """Raise a UserError if an experiment's published weights or encoded prompts are missing."""
    require_models(config)
    cache = cache_of(config)
    if cache is not None:
        size, network = config["data"].get("size"), config["network"].get("size")
        if None not in (size, network) and size != network:
            raise UserError(f"data.size = {size} and network.size = {network} differ: give network.size only")
        cache.read_index()


def encode(cache: PromptCache, settings: Settings, console: Console) -> CacheIndex:
    import torch

    from fgm.data.text_encoders import encode_prompts

    index, device = cache.plan(), settings.device
    console.print(f"{cache.directory}: {len(index.prompts)} prompts, through {', '.join(index.encoders)}")
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with progress_bar(console, len(index.prompts)) as progress:
        return encode_prompts(cache, index, device, settings.batch, progress)


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Any]:
    """Show a bar on a terminal, and elsewhere print a line for each shard."""
    if not console.is_terminal:
        yield lambda done: console.print(f"{done}/{total} prompts")
        return
    with Progress(console=console) as progress:
        task = progress.add_task("prompts", total=total)
        yield lambda done: progress.update(task, completed=done)


def describe(cache: PromptCache, index: CacheIndex, state: str) -> str:
    """Return a line on the cache, and a warning for each encoder that truncated prompts."""
    lines = [f"{cache.directory} {state}: {len(index.prompts)} prompts, the empty one first, in {index.shards} shards"]
    lines += [
        f"warning: {n} of them are longer than {name} takes, and are truncated"
        for name, n in index.truncated.items()
        if n
    ]
    return "\n".join(lines)


main = Command("cache-prompts", run, Settings, experiment="sd3_fgm")

if __name__ == "__main__":
    main.main()
