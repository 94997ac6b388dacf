"""What an evaluation costs beside the networks that it runs, and beside torch-fidelity's on the same pictures.

    bare         generator, quantise and extractor in a plain loop over batches, noise from torch.randn
    evaluation   ours: noise of its own for each sample, shards on the disk, fd and kid against a reference in memory
    extractor    the extractor alone, on pictures in memory
    fidelity     torch-fidelity's fid and kid of those pictures, its reference's features in its cache
    pictures     ours, of those pictures

    evaluation_over_bare      evaluation / bare
    evaluation_over_fidelity  pictures / fidelity
    fidelity_over_extractor   fidelity / extractor, beside pictures_over_extractor: what is spent around the network

All arms use one extractor on batches of one size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from fgm.cli.benchmarks.fidelity import calculation
from fgm.cli.benchmarks.timing import Times, ratios
from fgm.data import Data
from fgm.data.pixels import quantise
from fgm.evaluation.evaluator import whole_batches
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.references import real_images
from fgm.evaluation.shards import Plan, evaluate
from fgm.evaluation.sources import SampleSource
from fgm.evaluation.sources.dataset import DatasetSource
from fgm.evaluation.sources.sampler import SamplerSource
from fgm.utils.distributed import SingleProcess
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement

BATCH, SUBSETS, SUBSET_SIZE = 250, 100, 1000  # through the extractor; of kid
RATIOS = {
    "evaluation_over_bare": ("evaluation", "bare"),
    "evaluation_over_fidelity": ("pictures", "fidelity"),
    "fidelity_over_extractor": ("fidelity", "extractor"),
    "pictures_over_extractor": ("pictures", "extractor"),
}


@dataclass(frozen=True)
class Bench:
    """One generator, one extractor, one reference; arms write their shards and caches into directory.

    Raises:
        UserError: n samples cannot fill the covariance that fd needs.
    """

    source: SamplerSource
    data: Data
    extractor: FeatureExtractor
    metrics: tuple[str, ...]
    directory: Path

    def __post_init__(self) -> None:
        n, dim = self.source.n, self.extractor.dim
        if "fd" in self.metrics and n <= dim:
            raise UserError(f"n = {n}: fd in {dim} features needs {dim + 1} samples; give metrics=kid, or a larger n")

    @property
    def measured(self) -> str:
        return " and ".join(self.metrics) + (f" of {SUBSETS} subsets" if "kid" in self.metrics else "")

    def arms(self) -> dict[str, Callable[[], object]]:
        images, real = self.source.take(range(self.source.n)).x, quantise(real_images(self.data, "train")[0])
        suite = FeatureMetrics(self.extractor, self.data, None, self.metrics, "own", SUBSETS, SUBSET_SIZE, BATCH)
        size, folders = min(SUBSET_SIZE, len(images), len(real)), count()

        def ours(source: SampleSource) -> object:
            plan = Plan(source.n, whole_batches(self.source.batch), self.directory / str(next(folders)))
            return evaluate(source, suite, plan, SingleProcess())

        wanted = {"fid": "fd" in self.metrics, "kid": "kid" in self.metrics}
        wanted |= {"kid_subsets": SUBSETS, "kid_subset_size": size}
        return {
            "bare": self.bare,
            "evaluation": lambda: ours(self.source),
            "extractor": lambda: self.extract(images),
            "fidelity": calculation(self.extractor, images, real, BATCH, self.directory / "fidelity", **wanted),
            "pictures": lambda: ours(DatasetSource(images, None, "samples in memory")),
        }

    @torch.no_grad()
    def bare(self) -> None:
        source, device = self.source, self.source.device
        for indices in torch.arange(source.n).split(source.batch):
            z, condition = torch.randn(len(indices), *source.shape), source.conditioning.conditions(indices)
            condition = condition if condition is None else condition.to(device)
            self.extract(quantise(source.source.sampler(z.to(device), condition).float().cpu()))

    def extract(self, images: Tensor) -> None:
        for part in images.split(BATCH):
            self.extractor(part)

    def measurements(self, times: Times, told: str) -> list[Measurement]:
        """Ratios and images a second, from the times of the arms; told says what was run."""
        source, repetitions = self.source, len(times["bare"])
        protocol = f"{told}; {self.extractor.id}, {self.measured}, median of {repetitions} interleaved repetitions"
        shared = {"n": source.n, "protocol": protocol, "nfe": source.nfe, "weights": source.weights}
        rate = Measurement("images_per_s", source.n / median(times["evaluation"]), **shared)
        return [*ratios(times, RATIOS, **shared), rate]
