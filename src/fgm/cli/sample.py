"""python -m fgm.cli.sample experiment=<name> [n=100] [sample_seed=0] [prompt="..."] [out=]: draw from a finished run.

prompt= is for models with prompts: n images of that one; without it every image has a prompt of its own.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from fgm.cli.checks import make
from fgm.cli.command import Command
from fgm.cli.loading import load_source
from fgm.cli.runs import device_of_rank, finished
from fgm.utils.errors import UserError
from fgm.utils.files import require_place
from fgm.utils.records import counted

MANY, PROMPTED = 100, 12
PICTURES = (".png", ".jpg", ".svg", ".pdf")


@dataclass(frozen=True)
class Settings:
    n: PositiveInt | None = None
    sample_seed: NonNegativeInt = 0
    prompt: str | None = None
    out: str | None = None


def run(config: dict[str, Any], settings: Settings) -> None:
    from fgm.evaluation.plots import save_rows, save_square
    from fgm.evaluation.sampling import draw_samples

    config, n, seed = finished(config), settings.n, settings.sample_seed
    out = Path(settings.out or f"{config['run_dir']}/samples/drawn.png")
    if out.suffix not in PICTURES:
        raise UserError(f"out = {out} must end with {', '.join(PICTURES)}")
    require_place(out.parent)
    data = make(config["data"], "data")
    conditions, prompts = conditions_of(config["experiment"], data, settings.prompt, n, seed)
    source, device, count = load_source(config), device_of_rank(), n or (PROMPTED if prompts else MANY)
    source.model.to(device)
    began = time.perf_counter()
    seen, batch = source.decoded(data), config["evaluation"]["batch"]
    x_0, _ = draw_samples(seen, seed, count, data.shape, conditions, device, batch)
    took = time.perf_counter() - began
    if prompts:
        save_rows({source.name: x_0}, out, prompts)
    else:
        save_square(x_0, out)
    print(f"{out}: {count} samples, {counted(source.nfe, 'network call')} each, {took:.2f} s")


def conditions_of(experiment: str, data: Any, prompt: str | None, n: int | None, seed: int) -> tuple[Any, list[str]]:
    """Return the samples' conditions as a function of their indices, and the prompts in words, if there are any.

    Raises:
        UserError: a prompt for a model without prompts.
    """
    import torch

    from fgm.evaluation.sampling import conditioning

    words = data.prompts
    if prompt and words is None:
        raise UserError(f"prompt = {prompt!r}: {experiment} is no model with prompts; leave it out")
    if prompt and words:
        tokens = words.encode([prompt])
        return lambda indices: tokens.repeat_interleave(len(indices), 0), [prompt] * (n or PROMPTED)
    conditions: Any = conditioning(data, None, seed).conditions
    return conditions, words.decode(conditions(torch.arange(n or PROMPTED))) if words else []


main = Command("sample", run, Settings)

if __name__ == "__main__":
    main.main()
