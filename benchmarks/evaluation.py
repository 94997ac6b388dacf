"""Time an evaluation against its networks alone, and against torch-fidelity on the same pictures:
python -m benchmarks.evaluation [experiment=digits_fgm] [key=value ...]

    bare         generator, quantise and extractor in a plain loop over batches, noise from torch.randn
    evaluation   ours: keyed noise for each sample, shards on the disk, fd and kid against a reference in memory
    extractor    only the extractor, on pictures in memory
    fidelity     torch-fidelity's fid and kid of those pictures, with its reference's features cached
    pictures     ours, of those pictures

    evaluation_over_bare      evaluation / bare
    evaluation_over_fidelity  pictures / fidelity
    fidelity_over_extractor   fidelity / extractor, and pictures_over_extractor: what is spent around the network

n=2000             samples
extractor=small    small (digits), convolutions or inception (untrained, any pictures)
metrics=all        fd and kid of 100 subsets, or only fd or kid
repetitions=5      of every arm, in turn; the medians count

A finished run's generator is timed, or an untrained one if there is no run. All arms use one extractor and batch size.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Times, interleaved, ratios, read_arguments, report
from fgm.cli.checks import make
from fgm.cli.loading import load_source
from fgm.cli.runs import device_of_rank, read_config
from fgm.data import Data
from fgm.data.pixels import quantise
from fgm.evaluation.comparison import real_images
from fgm.evaluation.evaluator import CHUNK, gather_features
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.features import (
    FeatureExtractor,
    NetworkExtractor,
    RandomConvolutions,
    SmallClassifier,
    three_channels,
    weights_hash,
)
from fgm.evaluation.sampling import Sampler, conditioning
from fgm.evaluation.sources import DatasetSource, SamplerSource, SampleSource
from fgm.networks.generator import FewStepGenerator
from fgm.utils.distributed import SingleProcess
from fgm.utils.errors import UserError, entry
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement

METRICS = {"all": ("fd", "kid"), "fd": ("fd",), "kid": ("kid",)}
SETTINGS = {
    "n": 2000, "extractor": ("small", "convolutions", "inception"), "metrics": tuple(METRICS), "repetitions": 5,
}  # fmt: skip
SEED, BATCH, SUBSETS, SUBSET_SIZE = 1234, 250, 100, 1000  # BATCH through the extractor; subsets of kid
RATIOS = {
    "evaluation_over_bare": ("evaluation", "bare"),
    "evaluation_over_fidelity": ("pictures", "fidelity"),
    "fidelity_over_extractor": ("fidelity", "extractor"),
    "pictures_over_extractor": ("pictures", "extractor"),
}
FIDELITY_NAME = "fgm-bench"


def main(arguments: list[str]) -> None:
    own, config = read_arguments(arguments, SETTINGS)
    n, repetitions, data = own["n"], own["repetitions"], make(config["data"], "data")
    if len(data.shape) != 3:
        raise UserError(f"pictures are measured, and {config['experiment']} draws points")
    began, (generator, origin) = time.perf_counter(), generator_of(config)
    device = device_of_rank(config["trainer"]["accelerator"])
    generator.model.to(device)
    conditions, batch = conditioning(data, None, SEED), config["evaluation"]["batch"]
    source = SamplerSource(generator, SEED, n, data.shape, conditions, device, batch)
    with TemporaryDirectory() as directory:
        bench = EvaluationBench(source, data, extractor_of(own["extractor"]), METRICS[own["metrics"]], Path(directory))
        times = interleaved(bench.arms(), repetitions)
    images_seen, wall_s = n * len(times) * (repetitions + 1), round(time.perf_counter() - began, 1)
    results = bench.measurements(times, origin)
    report("evaluation", config, own, results, times, images_seen=images_seen, wall_s=wall_s)


def generator_of(config: dict[str, Any]) -> tuple[Sampler, str]:
    """Return a finished run's generator, or an untrained one of its experiment, and which of the two it is."""
    run_dir = Path(config["run_dir"])
    if (run_dir / "results.json").exists():
        return load_source(read_config(run_dir / "config.yaml", config) | {"run_dir": str(run_dir)}), "finished run"
    node, path = config["method"], make(config["path"], "path")
    t_star, c_in = node.get("t_star", 1.0), node.get("c_in", "one")
    net, std = make(config["network"], "network"), make(config["data"], "data").std
    generator = FewStepGenerator(net, path, t_star, c_in, std).eval()
    return Sampler("one step, untrained", generator, 1, "raw"), "untrained network"


@dataclass(frozen=True)
class EvaluationBench:
    """One generator, one extractor, one reference; torch-fidelity caches into directory.

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

    def arms(self) -> dict[str, Callable[[], object]]:
        images, real = self.source.take(range(self.source.n)).x, quantise(real_images(self.data, "train")[0])
        suite = FeatureMetrics(self.extractor, self.data, None, self.metrics, "own", SUBSETS, SUBSET_SIZE, BATCH)
        size, batch = min(SUBSET_SIZE, len(images), len(real)), self.source.batch
        chunk = batch * max(1, CHUNK // batch)

        def ours(source: SampleSource) -> object:
            return suite.compute(gather_features(source, suite, chunk, SingleProcess()))

        wanted = {"fid": "fd" in self.metrics, "kid": "kid" in self.metrics}
        wanted |= {"kid_subsets": SUBSETS, "kid_subset_size": size}
        return {
            "bare": self.bare,
            "evaluation": lambda: ours(self.source),
            "extractor": lambda: self.extract(images),
            "fidelity": torch_fidelity(self.extractor, images, real, self.directory / "fidelity", **wanted),
            "pictures": lambda: ours(DatasetSource(images, None, "samples in memory")),
        }

    @torch.no_grad()
    def bare(self) -> None:
        source, device = self.source, self.source.device
        for indices in torch.arange(source.n).split(source.batch):
            z, condition = torch.randn(len(indices), *source.shape), source.conditioning.conditions(indices)
            condition = condition if condition is None else condition.to(device)
            self.extract(quantise(source.sampler.model(z.to(device), condition).float().cpu()))

    def extract(self, images: Tensor) -> None:
        for part in images.split(BATCH):
            self.extractor(part)

    def measurements(self, times: Times, origin: str) -> list[Measurement]:
        """Return ratios and images a second; origin describes the generator in the protocol."""
        source, repetitions = self.source, len(times["bare"])
        metrics = " and ".join(self.metrics) + (f" of {SUBSETS} subsets" if "kid" in self.metrics else "")
        protocol = f"{origin}; {self.extractor.id}, {metrics}, median of {repetitions} interleaved repetitions"
        shared = {"n": source.n, "protocol": protocol, "nfe": source.nfe, "weights": source.weights}
        rate = Measurement("images_per_s", source.n / median(times["evaluation"]), **shared)
        return [*ratios(times, RATIOS, **shared), rate]


def torch_fidelity(
    extractor: FeatureExtractor, images: Tensor, real: Tensor, cache: Path, **metrics: Any
) -> Callable[[], dict[str, float]]:
    """Return calculate_metrics of images against real, uint8 (n, c, h, w), as a function without arguments.

    The reference's features are cached, as ours are in the suite; the samples' are not. Grey pictures reach the
    extractor as they were before torch-fidelity made them three channels.
    """
    from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Ours(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (extractor(x[:, :1] if images.shape[1] == 1 else x),)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

    FEATURE_EXTRACTORS_REGISTRY.pop(FIDELITY_NAME, None)
    register_feature_extractor(FIDELITY_NAME, Ours)
    settings = {
        "cuda": False,
        "save_cpu_ram": True,
        "verbose": False,
        "batch_size": BATCH,
    }  # the extractor has a device
    settings |= {"cache": True, "cache_root": str(cache), "input2_cache_name": "real"}
    inputs: dict[str, Any] = {"input1": Pictures(images), "input2": Pictures(real)}
    return lambda: calculate_metrics(**inputs, feature_extractor=FIDELITY_NAME, **settings, **metrics)


class Pictures(torch.utils.data.Dataset[Tensor]):
    """uint8 (n, 3, h, w), one by one."""

    def __init__(self, images: Tensor) -> None:
        self.images = three_channels(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class UntrainedInception(NetworkExtractor):
    """The architecture of fgm.evaluation.pretrained_features.Inception with random weights, which cost as much; 2048 features."""

    def __init__(self, device: str = "auto") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # seconds to import

        class Untrained(FeatureExtractorInceptionV3):
            def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
                """Stay as constructed."""

        nothing = BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        net = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing).eval()
        for i, weight in enumerate(p for p in net.parameters() if p.ndim == 4):
            scale = (2 / weight[0].numel()) ** 0.5  # activations keep their size
            weight.data = torch.randn(weight.shape, generator=keyed_generator("inception", index=i)) * scale
        super().__init__("untrained-inception", weights_hash(net), 2048, net, device, "bilinear as TensorFlow 1")

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return self.net(three_channels(images))[0], None


def extractor_of(name: str) -> FeatureExtractor:
    return {"small": SmallClassifier, "convolutions": RandomConvolutions, "inception": UntrainedInception}[name]()


if __name__ == "__main__":
    entry(main, __doc__)
