"""The package from Python: load a finished run, distil a teacher, measure samples."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from fgm.cli.checks import make
from fgm.cli.config import compose_experiment, experiment_names
from fgm.cli.loading import load_source
from fgm.cli.runs import RESULTS, finished, read_config
from fgm.data import Data
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.sampling import Sampler, conditioning, draw_samples
from fgm.flow.paths import ProbabilityPath, RectifiedPath
from fgm.flow.times import LogitNormal, TimestepDensity
from fgm.networks import VelocityModel
from fgm.networks.guidance import unwrap_guidance
from fgm.training.config import TrainingConfig
from fgm.training.contract import Contract, Party, require
from fgm.training.distillation import Distillation
from fgm.training.optim import adam
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement
from fgm.utils.validation import validated


@dataclass(frozen=True)
class Generator:
    """A model that draws samples: generator(n=16, seed=0), or generator(z, condition) from noise of your own.

    Attributes:
        sampler: the model and its number of network calls per sample (sampler.nfe).
        data: shape and conditions of the samples.
        evaluation: what measured the run; None for a generator that was not loaded.
    """

    sampler: Sampler
    data: Data
    evaluation: Evaluator | None = None

    @torch.no_grad()
    @validated
    def __call__(
        self, z: Tensor | None = None, condition: Tensor | None = None, *, n: PositiveInt = 1, seed: NonNegativeInt = 0
    ) -> Tensor:
        """Return samples x_0, (n, *shape).

        Args:
            z: noise (n, *shape). Without it, samples 0 to n - 1 of a seed are those of `fgm sample`, to the bit.
            condition: (n, ...), with z only; without z classes are balanced and prompts drawn from the data's.
        """
        device = next((p.device for p in self.sampler.model.parameters()), torch.device("cpu"))
        if z is None:
            conditions: Any = conditioning(self.data, None, seed).conditions
            return draw_samples(self.sampler, seed, n, tuple(self.data.shape), conditions, device)[0]
        count, rest = self.sampler.renoisings, () if condition is None else (condition,)
        if not count:
            return self.sampler.model(z, *rest)
        rng = keyed_generator(seed, "renoising", index=0, device=z.device)
        eps = torch.randn((len(z), count, *z.shape[1:]), generator=rng, dtype=z.dtype, device=z.device)
        return self.sampler.model(z, condition, eps)


def load(run: str | Path) -> Generator:
    """Load a finished run from its folder, or the run of an experiment by its name.

    The folder's config may name only what the package's configs name; nothing in it is executed.

    Raises:
        UserError: there is no finished run.
    """
    folder = Path(run)
    if (folder / RESULTS).is_file():
        config = read_config(folder / "config.yaml", {}) | {"run_dir": str(folder)}
    elif str(run) in experiment_names():
        config = finished(compose_experiment(str(run), []))
    else:
        raise UserError(f"{folder} holds no finished run: there is no {folder / RESULTS}")
    return Generator(load_source(config), make(config["data"], "data"), make(config["evaluation"], "evaluation"))


class Samples(Data):
    """Shape and standard deviation of samples, for a distillation, which needs no more of its data."""

    def __init__(self, shape: tuple[int, ...], std: float) -> None:
        self.shape, self.std = shape, std  # type: ignore[assignment]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        raise UserError("this option needs real samples: give data= instead of shape=")

    def reference(self, n: int, generator: torch.Generator) -> Tensor:
        return self.draw(n, generator)[0]


class Velocity(VelocityModel):
    """Any module u(x_t, t) or u(x_t, t, condition) as a VelocityModel."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.net, self.shape, self.num_classes = net, shape, num_classes

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.net(x_t, t) if condition is None else self.net(x_t, t, condition)


@validated
def distill(
    teacher: nn.Module, data: Data | None = None, shape: tuple[int, ...] | None = None, *,
    max_steps: PositiveInt = 1000, batch_size: PositiveInt = 128, lr: PositiveFloat = 1e-3, std: PositiveFloat = 0.5,
    path: ProbabilityPath | None = None, times: TimestepDensity | None = None, seed: NonNegativeInt = 0,
    trainer: Trainer | None = None, **options: Any,
) -> Generator:  # fmt: skip
    """Distil a velocity network into a one-step generator.

    Args:
        teacher: the velocity dx_t/dt as a module u(x_t, t, condition); t = 0 is data, t = 1 is noise.
        data: shape and conditions of the samples, and real samples for a discriminator or RealUID.
        shape: of one sample, in place of data.  std: of the samples, for c_in="variance" only.
        lr: of Adam.  path: the rectified one unless given.  times: logit-normal unless given.
        trainer: a lightning.Trainer of your own; it takes one epoch.
        options: any other argument of TrainingConfig or Distillation, such as t_star=0.9 (default 0.97), steps, ema_half_life.

    Raises:
        UserError: neither data nor shape is given, the teacher does not fit them, or an option is unknown or out of range.
    """
    if (data is None) == (shape is None):
        raise UserError("give data= or shape=, one of the two")
    data = data if data is not None else Samples(tuple(shape or ()), std)
    known = {field.name for field in fields(TrainingConfig)}
    config = TrainingConfig(max_steps, batch_size, **{key: options.pop(key) for key in known & options.keys()})
    if not isinstance(teacher, VelocityModel):
        teacher = Velocity(teacher, tuple(data.shape), data.num_classes)
    settings: dict[str, Any] = {"t_star": 0.97} | options
    path = path or RectifiedPath()
    party = Party.of(teacher, f"teacher {type(unwrap_guidance(teacher)).__name__}")
    require(Contract(data, path, teacher=party, guidance=(getattr(teacher, "scale", 1.0), "scale", party)))
    try:
        module = Distillation(
            teacher, data, path, times or LogitNormal(), partial(adam, lr=lr), config, seed=seed, **settings
        )
    except TypeError as error:
        raise UserError(f"distill: {str(error).partition(' ')[2]}") from error
    trainer = trainer or Trainer(
        max_epochs=1, devices=1, plugins=LightningEnvironment(), logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module)
    return Generator(module.samplers()[0], data)


def evaluate(generator: Generator, suite: Any = None, n: int = 10_000, seed: int = 1234) -> list[Measurement]:
    """Measure samples 0 to n - 1 of a seed.

    Args:
        suite: a metric suite of fgm.evaluation, such as PointMetrics(data); the run's own unless given.

    Raises:
        UserError: there is no suite, or n samples are too few for it.
    """
    evaluator = generator.evaluation if suite is None else Evaluator(suite, n=n, every=0)
    if evaluator is None:
        raise UserError("this generator comes from no run: give evaluate a suite")
    require(Contract(generator.data, evaluation=evaluator))
    device = next((p.device for p in generator.sampler.model.parameters()), torch.device("cpu"))
    return evaluator.measure(evaluator.source(generator.sampler, generator.data, device, n, seed))
