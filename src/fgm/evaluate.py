"""python -m fgm.evaluate experiment=<recipe> [n=10000] [seed=1234]: measure a finished run's exported weights again."""

from pathlib import Path

from rich.console import Console

from fgm.errors import Refusal, entry
from fgm.finished import finished_run, load_source


def main(arguments: list[str]) -> None:
    config, own = finished_run(arguments, {"n": "", "eval_seed": ""})
    numbers = {key: int(value) for key, value in own.items() if value.isdigit()}
    if any(value and key not in numbers for key, value in own.items()):
        raise Refusal("n and eval_seed are whole numbers")
    from dataclasses import replace

    import torch
    from hydra.utils import instantiate

    from fgm.train import summary

    evaluation = instantiate(config["evaluation"])
    evaluation = replace(evaluation, n=numbers.get("n", evaluation.n), seed=numbers.get("eval_seed", evaluation.seed))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = load_source(config)
    source.sampler.to(device)
    measured = evaluation.measure(source, instantiate(config["data"]), device, evaluation.n)
    Console(soft_wrap=True).print(summary(measured + evaluation.panel.bounds(), str(Path(config["run_dir"]))))


if __name__ == "__main__":
    entry(main, __doc__)
