"""What teacher, data, network, method and evaluation must agree on, checked before anything is trained or measured.

A Party states what a network takes and what it was trained for; None is unknown, and what is unknown is not refused. Each
condition is one function in CONDITIONS, from a Contract to a Mismatch or None. All are refused in one form:

    path: teacher digits_teacher was trained on RectifiedPath, this run uses TrigonometricPath; use path=rectified

To add a condition, write such a function and append it; its name is the first word of the line.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from fgm.data import Data
from fgm.evaluation import PromptMetric
from fgm.evaluation.comparison import FRESH_DRAWS, METRICS
from fgm.evaluation.feature_metrics import FeatureMetrics
from fgm.flow.paths import ProbabilityPath, describe, override_of, same_path
from fgm.networks import VelocityModel
from fgm.networks.guidance import unwrap_guidance
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

Kind = Literal["prompts", "labels", "nothing"]
Mismatch = tuple[str, str, str]  # what one side has, what the other has, and what fits
Shapes = Mapping[str, tuple[int, ...]]  # of weights, by name
LARGEST_RATIO = 1.5  # of standard deviations; [0, 1] in place of [-1, 1] is 2
KINDS: dict[str, Any] = {
    "shape": (tuple, list), "num_classes": int, "takes_prompts": bool, "path": ProbabilityPath, "data_std": float,
    "null_condition": bool,
}  # fmt: skip


@dataclass(frozen=True)
class Party:
    """A velocity network, as far as it is known; see VelocityModel for the attributes that it declares.

    Attributes:
        name: in messages, such as "teacher digits_teacher".
        velocity: whether it is a velocity at all; a one-step generator is not.
        node: the config of the network.
    """

    name: str
    shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    takes_prompts: bool | None = None
    path: ProbabilityPath | None = None
    data_std: float | None = None
    null_condition: bool | None = None
    velocity: bool = True
    node: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Any, name: str) -> Self:
        """Return what a network or its class declares; an attribute of another type is unknown."""
        source = unwrap_guidance(source) if isinstance(source, VelocityModel) else source
        declared = {key: getattr(source, key, None) for key in KINDS}
        return cls(name, **{key: value for key, value in declared.items() if isinstance(value, KINDS[key])})

    def over(self, other: "Party") -> "Party":
        """Return other with what is known of this party in place of its own."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) not in (None, {})}
        return replace(other, **known)

    @property
    def takes(self) -> Kind | None:
        if self.num_classes or self.takes_prompts:
            return "labels" if self.num_classes else "prompts"
        return "nothing" if (self.num_classes, self.takes_prompts) == (0, False) else None


@dataclass(frozen=True)
class Contract:
    """What comes together in one run.

    Attributes:
        data, path, evaluation: as objects; data needs a shape, and evaluation a suite.
        teacher: None if there is none.
        network: that is built afresh; None if all weights come from the teacher.
        distils: whether the teacher is matched; otherwise it only lends its weights.
        guidance: the scale, its key, and the party that it is applied to.
        label_dropout: share of conditions that are replaced by the null condition in this training.
        steps: with which the result is measured.
        node: the config of the run's network; empty if neither training nor loading builds it.
        changed: dotted keys that differ from the experiment's.
        exported, loaded: weights that the run will write, and weights of the network that loading builds.
    """

    data: Any
    path: ProbabilityPath | None = None
    evaluation: Any = None
    teacher: Party | None = None
    network: Party | None = None
    distils: bool = True
    guidance: tuple[float, str, Party | None] = (1.0, "guidance", None)
    label_dropout: float = 0.0
    steps: tuple[int, ...] = (1,)
    node: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    exported: Shapes = field(default_factory=dict)
    loaded: Shapes = field(default_factory=dict)

    @property
    def parties(self) -> list[Party]:
        return [party for party in (self.teacher, self.network) if party]

    @property
    def data_name(self) -> str:
        return f"data {type(self.data).__name__}"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self.data, "shape", ()))

    @property
    def num_classes(self) -> int:
        return getattr(self.data, "num_classes", 0)

    @property
    def gives(self) -> Kind | None:
        """What the data condition samples on."""
        if self.num_classes or getattr(self.data, "prompts", None) is not None:
            return "labels" if self.num_classes else "prompts"
        known = isinstance(self.data, Data) and self.data.conditions(1, keyed_generator("contract", index=0)) is None
        return "nothing" if known else None


def require(contract: Contract) -> None:
    """Raise a UserError if a condition does not hold: one line with both values and what fits."""
    for condition in CONDITIONS:
        found = condition(contract)
        if found:
            theirs, ours, remedy = found
            raise UserError(f"{condition.__name__}: {theirs}, {ours}; {remedy}")


def teacher(c: Contract) -> Mismatch | None:
    if not c.teacher or c.teacher.velocity or not c.distils:
        return None
    return f"{c.teacher.name} is a one-step generator", "this run distils a velocity", "use its own teacher"


def path(c: Contract) -> Mismatch | None:
    trained = c.teacher.path if c.teacher and c.distils else None
    if not c.teacher or not trained or not c.path or same_path(trained, c.path):
        return None
    theirs, ours = f"{c.teacher.name} was trained on {describe(trained)}", f"this run uses {describe(c.path)}"
    return theirs, ours, f"use {override_of(trained)}"


def shape(c: Contract) -> Mismatch | None:
    for party in c.parties:
        if c.shape and party.shape and tuple(party.shape) != c.shape:
            remedy = (
                "use data of the teacher's shape, or another teacher" if party is c.teacher else resized(party, c.shape)
            )
            return f"{party.name} takes samples of shape {tuple(party.shape)}", f"{c.data_name} has {c.shape}", remedy
    return None


def resized(network: Party, shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and {"size", "channels"} <= network.node.keys():
        square = shape[1] == shape[2]
        return f"use network.size={shape[1]} network.channels={shape[0]}" if square else "crop or pad the images square"
    return f"use network.dim={shape[0]}" if len(shape) == 1 and "dim" in network.node else "use another network="


def conditions(c: Contract) -> Mismatch | None:
    fits = {"prompts": "data of prompts", "labels": "data with labels", "nothing": "data without labels or prompts"}
    for party in c.parties:
        if party.takes and c.gives and party.takes != c.gives:
            own = party is c.network and "prompts" not in (party.takes, c.gives)
            other = f"network.num_classes={c.num_classes}" if own else f"another {party.name.split()[0]}"
            takes, gives = (
                f"takes {counted(party.takes, party.num_classes)}",
                f"gives {counted(c.gives, c.num_classes)}",
            )
            return f"{party.name} {takes}", f"{c.data_name} {gives}", f"use {other}, or {fits[party.takes]}"
    return None


def counted(kind: Kind, num_classes: int | None) -> str:
    return f"labels of {num_classes} classes" if kind == "labels" else kind


def classes(c: Contract) -> Mismatch | None:
    for party in c.parties:
        n = party.num_classes
        if c.num_classes and n and n != c.num_classes:
            other = f"network.num_classes={c.num_classes}" if party is c.network else "another teacher"
            remedy = f"use {other}, or labels from 0 to {n - 1} ({n} is the null class)"
            return f"{party.name} has {n} classes", f"{c.data_name} has {c.num_classes}", remedy
    return None


def data_scale(c: Contract) -> Mismatch | None:
    trained = c.teacher.data_std if c.teacher and c.distils else None
    ours = getattr(c.data, "std", None) if trained else None
    if not c.teacher or not trained or not ours or max(trained / ours, ours / trained) < LARGEST_RATIO:
        return None
    theirs = f"{c.teacher.name} was trained on data of standard deviation {trained:.3g}"
    return theirs, f"{c.data_name} has {ours:.3g}", "use the teacher's data, in its units"


def guidance(c: Contract) -> Mismatch | None:
    scale, key, party = c.guidance
    if scale == 1 or party is None or party.null_condition is not False or c.gives == "nothing":
        return None
    trained = "method.label_dropout=0.1" if key == "method.guidance" else "a teacher trained with method.label_dropout"
    remedy = f"use {key}=1, or {trained}"
    return f"{party.name} never saw the null condition", f"this run uses {key}={scale:g}", remedy


def no_effect(c: Contract) -> Mismatch | None:
    """Settings that change nothing."""
    for key, value, neutral in ((c.guidance[1], c.guidance[0], 1), ("method.label_dropout", c.label_dropout, 0)):
        if c.gives == "nothing" and value != neutral:
            return f"{c.data_name} gives no conditions", f"this run uses {key}={value:g}", f"use {key}={neutral}"
    if c.network or not c.teacher:
        return None
    lends, unused = f"{c.teacher.name} lends its weights", [key for key in c.changed if key.startswith("network.")]
    for key, theirs, ours in differences(c.teacher.node, c.node) if c.teacher.node and c.node else ():
        remedy = f"use network.{key}={theirs}, or a teacher with network.{key}={ours}"
        return f"{lends} and has network.{key}={theirs}", f"this run sets network.{key}={ours}", remedy
    if unused and not c.node:
        return f"{lends} and its architecture", f"this run sets {unused[0]}", "leave it out"
    return None


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            yield key, theirs.get(key), ours.get(key)


def evaluator(c: Contract) -> Mismatch | None:
    latents = getattr(type(c.data), "to_images", Data.to_images) is not Data.to_images
    for _, suite in suites_of(c.evaluation):
        name, side = type(suite).__name__, getattr(suite, "size", None)
        theirs = tuple(getattr(getattr(suite, "data", None), "shape", (3, side, side) if side else ()))
        if isinstance(suite, PromptMetric) and isinstance(c.data, Data) and c.data.prompts is None:
            return f"{name} has prompts of its own", f"{c.data_name} takes none", "use another evaluation="
        if c.shape and theirs and c.shape != theirs and not latents:
            ours = f"{c.data_name} has {c.shape}"
            return f"{name} compares with samples of shape {theirs}", ours, "use another evaluation="
        if isinstance(suite, FeatureMetrics) and len(c.shape) == 1:
            return f"{name} measures images", f"{c.data_name} has points", "use evaluation=points"
    return None


def measurements(c: Contract) -> Mismatch | None:
    """Metrics that the real images are too few for."""
    for key, suite in suites_of(c.evaluation):
        if not isinstance(suite, FeatureMetrics) or suite.data is None:
            continue
        n, dim = number_of_images(suite.data), suite.extractor.dim
        needed = {metric: METRICS[metric].min_samples(dim) for metric in suite.metrics}
        works = [metric for metric, least in needed.items() if least <= n]
        for metric in needed.keys() - works:
            space = f"the {dim} features of {suite.extractor.id}"
            remedy = f"use {key}.metrics=[{','.join(works)}]" if works else "use more images, or another evaluation="
            ours = f"data {type(suite.data).__name__} has {n}"
            return f"{metric} in {space} needs {needed[metric]} real images or more", ours, remedy
    return None


def number_of_images(data: Data) -> int:
    """Return how many images a suite compares with; of a zip without decoding them."""
    names = getattr(data, "names", None)
    return len(names) if names else len(data.split["train"][0]) if data.split else FRESH_DRAWS


def suites_of(evaluation: Any) -> list[tuple[str, Any]]:
    """Return an evaluator's metric suites with their keys, those of a combined suite one by one."""
    suite = getattr(evaluation, "suite", None)
    parts = getattr(suite, "suites", None)
    return [(f"evaluation.suite.suites.{n}", s) for n, s in parts.items()] if parts else [("evaluation.suite", suite)]


def steps(c: Contract) -> Mismatch | None:
    if c.steps and min(c.steps) > 0:
        return None
    return "samples need network calls", f"this run has method.steps={list(c.steps)}", "use method.steps=[50]"


def loadable(c: Contract) -> Mismatch | None:
    """Whether the finished run's weights fill the network that sample, eval and export build."""
    for name, theirs, ours in differences(c.exported, c.loaded) if c.exported and c.loaded else ():
        owner = f"the weights of {c.teacher.name if c.teacher else 'this run'}"
        built = f"network= builds {ours or 'none'}, which could not load them"
        remedy = "use a network= with these weights, or name one of your own by network._target_"
        return f"{owner} have {name} {theirs or 'nowhere'}", built, remedy
    return None


CONDITIONS: list[Callable[[Contract], Mismatch | None]] = [
    teacher, path, shape, conditions, classes, data_scale, guidance, no_effect, evaluator, measurements, steps, loadable,
]  # fmt: skip
