"""From images to verdicts: see, keep, ask for the colours that matter, judge.

The official evaluator's order. A colour classifier is asked for nothing but the boxes that a clause with a colour sees,
and only where the detector told no colour. With recorded detections the images are not even opened otherwise.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fgm.data.text.geneval.prompts import Metadata, digest, has_official_counts
from fgm.evaluation.geneval.detections import ColourClassifier, Detection, Detector, Pixels, RecordedDetector
from fgm.evaluation.geneval.layout import Sample
from fgm.evaluation.geneval.results import Details, Result
from fgm.evaluation.geneval.rules import OFFICIAL, GenEvalRules, Kept, Verdict, judge, keep, seen


class GenEval:
    """Images in, verdicts out.

    Args:
        detector: finds objects, or remembers them.
        colours: names the colours that the detector leaves open; not needed where no prompt names a colour.
        rules: the official ones unless stated.
    """

    def __init__(
        self,
        detector: Detector | RecordedDetector,
        colours: ColourClassifier | None = None,
        rules: GenEvalRules = OFFICIAL,
    ) -> None:
        self.detector, self.colours, self.rules = detector, colours, rules

    def protocol(self, prompts: Sequence[Metadata]) -> str:
        """All that defines a score but the sampler: the rules, what sees the images for them, and what was asked."""
        colours = [self.colours.protocol] if self.colours else []
        shape = " in GenEval's counts" if has_official_counts(prompts) else ""
        told = [self.rules.protocol, self.detector.protocol, *colours, f"{len(prompts)} prompts{shape}"]
        return f"{'; '.join(told)}, {digest(prompts)}"

    def evaluate(self, samples: Iterable[Sample], prompts: Sequence[Metadata]) -> list[Result]:
        """Verdicts on the samples of a layout, in their order."""
        return [self.verdict(sample, prompts[sample.index]) for sample in samples]

    def verdict(self, sample: Sample, metadata: Metadata) -> Result:
        kept, verdict = self.look(self.see(sample), metadata, sample.pixels)
        return Result(
            sample.key, (sample.index, sample.ordinal), metadata, verdict.correct, verdict.reason, details(kept)
        )

    def look(
        self, detections: list[Detection], metadata: Metadata, pixels: Callable[[], Pixels]
    ) -> tuple[Kept, Verdict]:
        """What is kept of the detections, and what it says; pixels are asked for where a colour is open."""
        kept = self.coloured(keep(detections, metadata.tag, self.rules), metadata, pixels)
        return kept, judge(metadata, [detection for found in kept.values() for detection in found], self.rules)

    def see(self, sample: Sample) -> list[Detection]:
        if isinstance(self.detector, RecordedDetector):
            return self.detector.recall(sample.key)
        return self.detector.detect(sample.pixels())

    def coloured(self, kept: Kept, metadata: Metadata, pixels: Callable[[], Pixels]) -> Kept:
        """The same boxes, with colours where a clause looks for one."""
        asked = list(dict.fromkeys(colourless(metadata, kept)))
        if not asked or self.colours is None:
            return kept
        answers = dict(zip(asked, self.colours.classify(pixels(), asked), strict=True))
        return {cls: [replace(d, colour=answers.get(d, d.colour)) for d in found] for cls, found in kept.items()}


def colourless(metadata: Metadata, kept: Kept) -> Iterable[Detection]:
    """What the clauses with a colour see, as far as its colour is open."""
    clauses = [clause for clause in metadata.include if clause.colour]
    return (d for clause in clauses for d in seen(clause, kept) if d.colour is None)


def details(kept: Kept) -> Details:
    return {cls: [[*map(float, d.box), float(d.score)] for d in found] for cls, found in kept.items()}
