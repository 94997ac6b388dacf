"""What tests of SD3's commands share: sd3_fgm on the tiny pipeline, and a finished run of it that nothing trained."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_sd3 import SIZE, save_tiny_pipeline

from fgm.cli import cache_prompts
from fgm.cli.config import compose_experiment
from fgm.cli.runs import write_yaml
from fgm.networks.guidance import unwrap_guidance

PROMPTS = ["a red cat", "two dogs", "a photo of a bench", "x"]
LORA = ["method=fgm_lora", "method.adapters.rank=2", "method.adapters.alpha=3"]
ROW = {"metric": "saturation", "value": 0.25, "n": 5, "protocol": "uint8, mean over images; prompts abc", "nfe": 1}


def settings_of(root: Path) -> list[str]:
    """Of an SD3 experiment, for the tiny pipeline in root/model and root/prompts.txt."""
    if not (root / "model").exists():
        save_tiny_pipeline(root / "model")
        (root / "prompts.txt").write_text("\n".join(PROMPTS))
    return [
        f"network.model={root / 'model'}", f"network.size={SIZE}",
        f"data.cache.directory={root / 'cache'}", f"data.cache.prompts.file={root / 'prompts.txt'}",
        "data.cache.max_length=24", "data.cache.dtype=float32", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "training.max_steps=2", "training.batch_size=2", "training.warmup_steps=0", "training.save_every_n_steps=1",
        "training.log_every_n_steps=1", "optimizer.lr=1e-3", "method.teacher_steps=2", "evaluation.n=5",
        "evaluation.n_in_training=3", "evaluation.every=2", f"experiments={root / 'experiments'}",
        f"outputs={root / 'outputs'}",
    ]  # fmt: skip


def cached(root: Path) -> list[str]:
    """The same with its prompts encoded."""
    given = settings_of(root)
    cache_prompts.main(["experiment=sd3_fgm", *given, "device=cpu"])
    return given


def finished(settings: list[str], seed: int = 1) -> list[str]:
    """The arguments of a run whose generator is the teacher and noise on every weight that training moves."""
    config = compose_experiment("sd3_fgm", settings)
    run_dir, noise = Path(config["run_dir"]), torch.Generator().manual_seed(seed)
    run_dir.mkdir(parents=True)
    save_file(
        {name: w + 0.1 * torch.randn(w.shape, generator=noise) for name, w in state(config).items()},
        run_dir / "generator.safetensors",
    )
    write_yaml(config, run_dir / "config.yaml")
    rows = [ROW | {"weights": weights} for weights in ("ema", "raw", "teacher")]
    (run_dir / "results.json").write_text(json.dumps({"results": rows, "seed": 0, "images_seen": 7}))
    return ["experiment=sd3_fgm", *settings]


def state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    from hydra.utils import instantiate

    from fgm.cli.loading import adapted

    if config["method"]["adapters"]:
        return adapted(config).adapter.state_dict()
    return unwrap_guidance(instantiate(config["teacher"])).state_dict()
