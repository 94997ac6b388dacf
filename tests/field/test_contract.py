"""Parts of a run that do not fit together are refused before anything is trained, in one form, whatever they come from."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fgm
from fgm.cli import contract
from fgm.cli.config import compose_experiment
from fgm.cli.contract import contract_of, loaded_shapes, party_of, require_fit, shapes
from fgm.data import Data
from fgm.data.points import Ring
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.evaluation.features import RandomConvolutions
from fgm.flow.paths import RectifiedPath, TrigonometricPath
from fgm.networks import VelocityModel
from fgm.networks.dit import DiT
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.networks.mlp import VelocityMLP
from fgm.networks.mmdit import CaptionedMMDiT
from fgm.teachers.torchcfm import TimeReversed
from fgm.training.contract import CONDITIONS, Contract, Party, require
from fgm.utils.errors import UserError

pytestmark = pytest.mark.field
PATHS = {name: {"_target_": f"fgm.flow.paths.{name}"} for name in ("RectifiedPath", "TrigonometricPath")}


class Pictures(Data):
    """Data of any shape and number of classes."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), num_classes: int = 10, std: float = 0.8) -> None:
        self.shape, self.num_classes, self.std = shape, num_classes, std  # type: ignore[assignment]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        labels = torch.zeros(n, dtype=torch.int64) if self.num_classes else None
        return torch.zeros(n, *self.shape), labels

    def reference(self, n: int, generator: torch.Generator) -> Tensor:
        return self.draw(n, generator)[0]


@cache
def composed(experiment: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    return compose_experiment(experiment, [*overrides])


@pytest.fixture(autouse=True)
def teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose each teacher's config once."""
    monkeypatch.setattr(contract, "run_of", lambda node: composed(node["experiment"], tuple(node["overrides"])))


def config_of(experiment: str, **changed: Any) -> dict[str, Any]:
    """An experiment's config with other nodes; data of digits, which need no file."""
    digits = {"data": {"_target_": "fgm.data.images.Digits"}}
    return deepcopy(composed(experiment)) | (digits if experiment.startswith(("cifar10", "sd3")) else {}) | changed


def line(terms: Contract) -> str:
    with pytest.raises(UserError) as refused:
        require(terms)
    return str(refused.value)


def line_of(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as refused:
        require_fit(config, None)
    return str(refused.value)


@pytest.mark.parametrize(
    "experiment, teacher",
    [
        ("digits_fgm", "digits_teacher"),
        ("shapes_fgm", "shapes_teacher_tuned"),
        ("cifar10_fgm_exact", "TimeReversed"),
        ("sd3_fgm", "SD3Velocity"),
        ("mixture_fgm", "GaussianMixtureVelocity"),
        ("cifar10_edm_fgm", "EDMVelocity"),
    ],
)
def test_a_teacher_on_a_path_that_is_not_its_own_is_refused_in_the_same_words(experiment: str, teacher: str) -> None:
    """A run's, a bundled, a torchcfm, an SD3, an exact and an EDM teacher; the last two are given another path."""
    config = config_of(experiment, path=PATHS["TrigonometricPath"])
    assert line_of(config) == (
        f"path: teacher {teacher} was trained on RectifiedPath, this run uses TrigonometricPath; use path=rectified"
    )


def test_edms_teacher_is_converted_to_the_path_of_the_run() -> None:
    config = config_of("cifar10_edm_fgm", path=PATHS["TrigonometricPath"])
    config["teacher"]["path"] = config["network"]["path"] = PATHS["TrigonometricPath"]
    party = contract_of(config, None).teacher
    assert party is not None and party.path == TrigonometricPath()


def test_a_path_with_other_parameters_is_another_path() -> None:
    config = config_of("digits_fgm", path={"_target_": "fgm.flow.paths.VarianceExplodingPath", "sigma_max": 5.0})
    config["teacher"]["overrides"] = ["path=variance_exploding"]
    assert line_of(config).endswith("; use path=variance_exploding path.sigma_max=80.0")
    config["teacher"]["overrides"] += ["path.sigma_max=5.0"]
    require_fit(config, None)


def test_a_one_step_generator_is_no_teacher() -> None:
    config = config_of("digits_fgm")
    config["teacher"]["experiment"] = "digits_fgm"
    assert line_of(config).startswith("teacher: teacher digits_fgm is a one-step generator")


@pytest.mark.parametrize(
    "data, network, remedy",
    [
        (Pictures(num_classes=11), DiT(8, num_classes=10), "use network.num_classes=11"),
        (Pictures(num_classes=5), DiT(8, num_classes=10), "use network.num_classes=5"),
        (Pictures(num_classes=0), DiT(8, num_classes=10), "use network.num_classes=0"),
        (Pictures(num_classes=10), DiT(8), "use network.num_classes=10"),
    ],
    ids=["labels from one", "fewer classes", "no labels", "a network without classes"],
)
def test_data_of_other_classes_than_the_network_s_name_both_counts(data: Data, network: Any, remedy: str) -> None:
    """Label 10 of ten classes is the null class, which trained on what it should never see."""
    refused = line(Contract(data, network=Party.of(network, "network DiT")))
    counts = [n for n in (data.num_classes, network.num_classes) if n]
    assert refused.startswith(("classes: ", "conditions: ")) and remedy in refused
    assert all(str(n) in refused for n in counts)


@pytest.mark.parametrize(
    "data, network", [(Pictures((3, 32, 32), 10), CaptionedMMDiT(32)), (Pictures((3, 32, 32), 0), CaptionedMMDiT(32))]
)
def test_a_network_of_prompts_needs_data_of_prompts(data: Data, network: VelocityModel) -> None:
    assert "takes prompts" in line(Contract(data, teacher=Party.of(network, "teacher CaptionedMMDiT")))


@pytest.mark.parametrize(
    "shape, remedy",
    [
        ((1, 8, 12), "crop or pad the images square"),
        ((3, 8, 8), "use network.size=8 network.channels=3"),
        ((1, 16, 16), "use network.size=16 network.channels=1"),
        ((2,), "use another network="),
    ],
)
def test_data_of_another_shape_than_the_network_s_are_refused(shape: tuple[int, ...], remedy: str) -> None:
    node = {"_target_": "fgm.networks.dit.DiT", "size": 8, "channels": 1, "num_classes": 10}
    refused = line(Contract(Pictures(shape), network=party_of(node, "network")))
    assert refused == f"shape: network DiT takes samples of shape (1, 8, 8), data Pictures has {shape}; {remedy}"


def test_data_of_another_shape_than_the_teacher_s_are_refused_before_it_is_trained() -> None:
    config = config_of("digits_fgm", data={"_target_": "fgm.data.points.Ring"})
    assert line_of(config).startswith(
        "shape: teacher digits_teacher takes samples of shape (1, 8, 8), data Ring has (2,)"
    )


@pytest.mark.parametrize("radius", [0.8, 6.0])
def test_data_in_other_units_than_the_teacher_s_are_refused(radius: float) -> None:
    """Images in [0, 1] in place of [-1, 1] have half the standard deviation."""
    config = config_of("checkerboard_fgm", data={"_target_": "fgm.data.points.Ring", "radius": radius})
    assert line_of(config).startswith(
        "data_scale: teacher checkerboard_teacher was trained on data of standard deviation"
    )
    config["data"]["radius"] = 1.6
    require_fit(config, None)


def test_guidance_of_a_teacher_that_never_saw_the_null_condition_is_refused() -> None:
    config = config_of("digits_fgm")
    config["teacher"]["guidance"] = 2.0
    assert line_of(config).startswith(
        "guidance: teacher digits_teacher never saw the null condition, this run uses teacher.guidance=2"
    )
    config["teacher"]["overrides"] = ["method.label_dropout=0.1"]
    require_fit(config, None)


def test_guidance_when_a_teacher_is_measured_needs_its_null_condition() -> None:
    config = config_of("digits_teacher")
    config["method"]["guidance"] = 2.0
    assert line_of(config).endswith("; use method.guidance=1, or method.label_dropout=0.1")


def test_a_published_teacher_declares_that_it_never_saw_the_null_condition() -> None:
    net = ClassifierFreeGuidance(TimeReversed(DiT(8, num_classes=10)), 2.0)
    party = Party.of(net, "teacher TimeReversed")
    assert line(Contract(Pictures(), teacher=party, guidance=(2.0, "scale", party))).startswith("guidance: ")


@pytest.mark.parametrize("key, value", [("width", 48), ("depth", 2), ("num_classes", 10)])
def test_a_size_of_the_network_has_no_effect_when_the_weights_are_the_teacher_s(key: str, value: int) -> None:
    config = config_of("digits_fgm")
    before, config["network"][key] = config["network"][key], value
    if before == value:
        require_fit(config, None)
        return
    assert line_of(config) == (
        f"no_effect: teacher digits_teacher lends its weights and has network.{key}={before}, this run sets "
        f"network.{key}={value}; use network.{key}={before}, or a teacher with network.{key}={value}"
    )
    config["method"]["generator_init"] = "random"
    require_fit(config, None)


def test_guidance_and_dropped_labels_have_no_effect_without_conditions() -> None:
    guided = Contract(Ring(), guidance=(2.0, "teacher.guidance", Party("teacher")))
    assert line(guided).startswith("no_effect: data Ring gives no conditions, this run uses teacher.guidance=2")
    assert line(Contract(Ring(), label_dropout=0.1)).endswith("; use method.label_dropout=0")


@pytest.mark.parametrize("steps", [(), (50, 0)])
def test_samples_of_no_network_call_are_refused(steps: tuple[int, ...]) -> None:
    assert line(Contract(Pictures(), steps=steps)).startswith("steps: ")


@pytest.mark.parametrize("data", [Ring(), Pictures((3, 32, 32)), Pictures((1, 16, 16))])
def test_an_evaluation_of_other_samples_is_refused(data: Data) -> None:
    suite = FeatureMetrics(RandomConvolutions(4), Pictures(), metrics=("kid",))
    assert line(Contract(data, evaluation=Evaluator(suite, n=8, every=0))).startswith("evaluator: FeatureMetrics")


def test_weights_that_loading_could_not_read_are_found_when_the_run_starts() -> None:
    """A published teacher's file decides the size, and loading builds the network that the config names."""
    config = config_of("cifar10_edm_fgm", network={"_target_": "fgm.networks.dit.DiT", "size": 8})
    fits = Contract(Pictures(), exported=shapes(DiT(8)), loaded=loaded_shapes(config))
    require(fits)
    assert line(Contract(Pictures(), exported=shapes(DiT(8, width=48)), loaded=fits.loaded)).startswith("loadable: ")


class Undeclared(VelocityModel):
    """Says nothing of what it was trained for, and has attributes of the same names for something else."""

    shape, num_classes, path = (1, 8, 8), 10, "weights.pt"  # type: ignore[assignment]


class Declared(Undeclared):
    path, null_condition = RectifiedPath(), False


def test_what_a_teacher_of_one_s_own_does_not_declare_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = config_of("digits_fgm", path=PATHS["TrigonometricPath"])
    config["teacher"] = {"_target_": "test_contract.Undeclared", "guidance": 2.0}
    require_fit(config, None)
    config["teacher"]["_target_"] = "test_contract.Declared"
    assert line_of(config).startswith("path: teacher Declared was trained on RectifiedPath")
    config["path"] = PATHS["RectifiedPath"]
    assert line_of(config).startswith("guidance: teacher Declared never saw the null condition")


def test_a_path_of_one_s_own_equals_itself() -> None:
    class Own(RectifiedPath):
        pass

    require(Contract(Pictures(), Own(), teacher=Party("teacher", path=RectifiedPath())))


def test_the_contract_holds_from_python() -> None:
    with pytest.raises(UserError, match=r"^path: teacher TimeReversed was trained on RectifiedPath"):
        fgm.distill(TimeReversed(DiT(8)), shape=(1, 8, 8), path=TrigonometricPath())
    with pytest.raises(UserError, match=r"^shape: teacher VelocityMLP takes samples of shape \(2,\)"):
        fgm.distill(VelocityMLP(2), shape=(3,))


def test_every_condition_has_a_name_of_its_own() -> None:
    names = [condition.__name__ for condition in CONDITIONS]
    assert len({*names}) == len(names)
