"""python -m fgm.cli.sample experiment=<recipe> [n=100] [sample_seed=0] [prompt="..."] [out=]: draw from a run.

prompt= is for models with prompts: n images of that one; without it every image has a prompt of its own.
"""

import time
from pathlib import Path
from typing import Any

from fgm.cli.arguments import whole, whole_or
from fgm.cli.evaluators import device_of_rank, make
from fgm.cli.finished import finished_run, load_source
from fgm.utils.errors import UserError, entry
from fgm.utils.files import require_place
from fgm.utils.records import counted

OWN = {"n": "", "sample_seed": "0", "prompt": "", "out": ""}
MANY, PROMPTED = 100, 12
PICTURES = (".png", ".jpg", ".svg", ".pdf")


def main(arguments: list[str]) -> None:
    config, own = finished_run(arguments, OWN)
    seed, n, out = whole(own, "sample_seed"), whole_or(own, "n", None, 1), picture_of(config, own["out"])
    data = make(config["data"], "data")
    conditions, prompts = asked(config["recipe"], data, own["prompt"], n, seed)
    source, device, count = load_source(config), device_of_rank(), n or (PROMPTED if prompts else MANY)
    source.sampler.to(device)
    from fgm.evaluation.pictures import captioned_grid, gallery
    from fgm.evaluation.sampling import decoded, draw_samples

    began = time.perf_counter()
    seen, batch = decoded(source, data), config["evaluation"]["batch"]
    x_0, _ = draw_samples(seen, seed, count, data.shape, conditions, device, batch)
    took = time.perf_counter() - began
    if prompts:
        captioned_grid({source.name: x_0}, prompts, out)
    else:
        gallery(x_0, out)
    print(f"{out}: {count} samples, {counted(source.nfe, 'network call')} each, {took:.2f} s")


def picture_of(config: dict[str, Any], out: str) -> Path:
    """Where to draw.

    Raises:
        UserError: out is no picture's name, or cannot be written.
    """
    path = Path(out or f"{config['run_dir']}/samples/drawn.png")
    if path.suffix not in PICTURES:
        raise UserError(f"out = {path} must end with {', '.join(PICTURES)}")
    require_place(path.parent)
    return path


def asked(recipe: str, data: Any, prompt: str, n: int | None, seed: int) -> tuple[Any, list[str]]:
    """What samples are drawn under, as a function of their indices, and in words, where there are any.

    Raises:
        UserError: a prompt for a model without prompts.
    """
    from fgm.data import prompted

    words = prompted(data)
    if prompt and words is None:
        raise UserError(f"prompt = {prompt!r}: {recipe} is no model with prompts; leave it out")
    import torch

    from fgm.evaluation.conditioning import conditioning

    if prompt and words:
        tokens = words.encode([prompt])
        return lambda indices: tokens.repeat_interleave(len(indices), 0), [prompt] * (n or PROMPTED)
    conditions: Any = conditioning(data, None, seed).conditions
    return conditions, words.decode(conditions(torch.arange(n or PROMPTED))) if words else []


if __name__ == "__main__":
    entry(main, __doc__)
