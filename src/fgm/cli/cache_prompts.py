"""python -m fgm.cli.cache_prompts experiment=sd3_fgm [device=auto|cpu|cuda] [batch=32]: encode prompts, once.

Training reads what this writes, and never an encoder. The same command again goes on at the shard where it stopped, or
says that it is done. The recipe's settings: data.cache.prompts (which prompts), data.cache.directory, data.cache.model.
With evaluation=geneval evaluation.suite.metadata=<file> GenEval's prompts are encoded too, and not trained on.
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
from fgm.data.prompts import GenEvalPrompts
from fgm.teachers import require_models
from fgm.utils.errors import UserError
from fgm.utils.printing import plain_console


@dataclass(frozen=True)
class Settings:
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: PositiveInt = 32


def run(config: dict[str, Any], settings: Settings) -> None:
    cache = cache_of(config)
    if cache is None:
        raise UserError(f"{config['recipe']} reads no prompts: sd3_fgm does")
    console = plain_console()
    if (Path(cache.directory) / INDEX).exists():
        console.print(told(cache, cache.read_index(), "is done"))
        return
    index = encode(cache, cache.plan(), settings.device, settings.batch, console)
    console.print(told(cache, index, "is written"))


def cache_of(config: dict[str, Any]) -> PromptCache | None:
    """The plan of a recipe's encoded prompts, where it reads any."""
    node = config["data"].get("cache")
    return make(node, "data.cache") if isinstance(node, dict) else None


def require(config: dict[str, Any]) -> None:
    """Refuse a recipe whose published weights or encoded prompts are missing; cheap, before torch is imported."""
    require_models(config)
    cache = cache_of(config)
    if cache is not None:
        require_one_size(config["data"]["size"], config["network"].get("size"))
        require_asked(config["evaluation"], cache, cache.read_index())


def require_asked(node: Any, cache: PromptCache, index: CacheIndex) -> None:
    """Refuse a GenEval whose prompts are not encoded, in training or at its end, before anything is trained."""
    if not isinstance(node, dict):
        return
    if str(node.get("_target_", "")).endswith(".GenEvalSuite"):
        missing = set(GenEvalPrompts(node["metadata"]).read()) - set(index.prompts)
        if missing:
            raise UserError(
                f"{len(missing)} prompts of GenEval are not in {cache.directory}: give another data.cache.directory "
                f"and data.cache.extra_prompts.metadata={node['metadata']}, and make cache-prompts with the same EXP and ARGS"
            )
    for value in node.values():
        require_asked(value, cache, index)


def require_one_size(data: int, network: int | None) -> None:
    if network is not None and data != network:
        raise UserError(f"data.size = {data} and network.size = {network} differ: give network.size alone")


def encode(cache: PromptCache, index: CacheIndex, device: str, batch: int, console: Console) -> CacheIndex:
    console.print(f"{cache.directory}: {len(index.prompts)} prompts, through {', '.join(index.encoders)}")
    import torch

    from fgm.data.text_encoders import encode_prompts

    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with bar(console, len(index.prompts)) as progress:
        return encode_prompts(cache, index, device, batch, progress)


@contextmanager
def bar(console: Console, total: int) -> Iterator[Any]:
    """A bar on a terminal, a line a shard elsewhere."""
    if not console.is_terminal:
        yield lambda done: console.print(f"{done}/{total} prompts")
        return
    with Progress(console=console) as progress:
        task = progress.add_task("prompts", total=total)
        yield lambda done: progress.update(task, completed=done)


def told(cache: PromptCache, index: CacheIndex, state: str) -> str:
    """One line, and one for each encoder that some prompts were too long for."""
    lines = [f"{cache.directory} {state}: {len(index.prompts)} prompts, the empty one first, in {index.shards} shards"]
    lines += [
        f"warning: {n} of them are longer than {name} takes, which reads their beginnings"
        for name, n in index.truncated.items()
        if n
    ]
    return "\n".join(lines)


main = Command("cache-prompts", run, Settings, experiment="sd3_fgm")

if __name__ == "__main__":
    main.main()
