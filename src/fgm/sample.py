"""python -m fgm.sample experiment=<recipe> [n=100] [sample_seed=0] [out=<file>.png]: draw from a finished run."""

import time
from pathlib import Path

from fgm.errors import Refusal, entry
from fgm.finished import finished_run, load_source


def main(arguments: list[str]) -> None:
    config, own = finished_run(arguments, {"n": "100", "sample_seed": "0", "out": ""})
    if not own["n"].isdigit() or int(own["n"]) < 1 or not own["sample_seed"].isdigit():
        raise Refusal(f"n = {own['n']} and sample_seed = {own['sample_seed']} must be whole numbers, n at least 1")
    import torch
    from hydra.utils import instantiate

    from fgm.evaluation.conditioning import conditioning
    from fgm.evaluation.pictures import gallery
    from fgm.evaluation.sampling import decoded, draw_samples

    out = Path(own["out"] or f"{config['run_dir']}/samples/drawn.png")
    source, data, n = load_source(config), instantiate(config["data"]), int(own["n"])
    began = time.perf_counter()
    seed, cpu, batch = int(own["sample_seed"]), torch.device("cpu"), config["evaluation"]["batch"]
    conditions = conditioning(data, None, seed).conditions
    x_0, _ = draw_samples(decoded(source, data), seed, n, data.shape, data.num_classes, cpu, batch, conditions)
    gallery(x_0, out)
    calls = "one network call" if source.nfe == 1 else f"{source.nfe} network calls"
    print(f"{out}: {n} samples, {calls} each, {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    entry(main, __doc__)
