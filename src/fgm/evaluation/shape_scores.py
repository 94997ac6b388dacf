"""ShapeEval's numbers, from whether each picture is right:

    shapeeval              UNWEIGHTED mean of the tags' scores
    shapeeval_<tag>        share of the tag's pictures that are right
    shapeeval_low, _high   95 % interval of shapeeval: bootstrap over captions, whose pictures are not independent
    shapeeval_seen         mean over the BINDING tags of the share right among captions of bindings seen in training
    shapeeval_unseen       the same among captions that bind a held-out pair of colour and shape

What nothing was asked of is left out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fgm.data.shapes.grammar import TAGS
from fgm.evaluation.geneval.prompts import Metadata
from fgm.evaluation.geneval.scores import Array, bootstrap

BINDING = ("colors", "color_attr")  # tags whose captions state every colour
KINDS = {"shapeeval_seen": False, "shapeeval_unseen": True}
RESAMPLES, LEVEL = 1000, 0.95


Scores = dict[str, tuple[float, int]]  # values, and the numbers of pictures behind them


def scores(correct: Array, asked: Sequence[Metadata], unseen: NDArray[np.bool_]) -> Scores:
    """Of pictures (n,): whether each is right, what was asked, whether that binds a held-out pair."""
    tags = np.array([metadata.tag for metadata in asked])
    masks = {tag: tags == tag for tag in TAGS if tag in tags}
    parts = {f"shapeeval_{tag}": (float(correct[mask].mean()), int(mask.sum())) for tag, mask in masks.items()}
    prompts = np.array([metadata.prompt for metadata in asked])
    shares = [prompt_shares(correct[mask], prompts[mask]) for mask in masks.values()]
    overall = [float(np.mean([value for value, _ in parts.values()])), *bootstrap(shares, 0, RESAMPLES, LEVEL)]
    names = ("shapeeval", "shapeeval_low", "shapeeval_high")
    values = {name: (value, len(correct)) for name, value in zip(names, overall, strict=True)}
    return values | parts | bindings(correct, tags, unseen)


def prompt_shares(correct: Array, prompts: NDArray[np.str_]) -> Array:
    """Share right of each prompt's pictures."""
    _, prompt = np.unique(prompts, return_inverse=True)
    return np.bincount(prompt, correct) / np.bincount(prompt)


def bindings(correct: Array, tags: NDArray[np.str_], unseen: NDArray[np.bool_]) -> Scores:
    """Mean over the binding tags of the share right, with and without held-out pairs."""
    cells = {name: [(tags == tag) & (unseen == held) for tag in BINDING] for name, held in KINDS.items()}
    return {
        name: (float(np.mean([correct[mask].mean() for mask in masks])), int(np.sum(masks)))
        for name, masks in cells.items()
        if all(mask.any() for mask in masks)
    }
