"""How far what is drawn departs from what captions ask for, as histograms over all objects of all images.

    class_tv     shapes of the objects             prior: the captions name them
    colour_tv    colours of the objects            prior: as stated; else uniform over what training shows of the shape
    count_tv     number of objects in an image    prior: the captions tell it

each the total variation of symptoms.py. The priors are exact, so that the truth's own distances are those of n draws;
a sampler that leaves out a class, a colour or objects is seen here even where no single caption judges it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fgm.data.shapes.scenes import OBJECTS, objects_of
from fgm.data.text.shapes.grammar import COUNTING, Captions
from fgm.data.text.shapes.vocabulary import COLOUR_NAMES, SEEN_COLOURS, SHAPE_NAMES
from fgm.evaluation import Features
from fgm.evaluation.diagnostics import total_variation
from fgm.evaluation.geneval.detections import Detection

COLOURS, SHAPES = len(COLOUR_NAMES), len(SHAPE_NAMES)
COUNTS = OBJECTS + 2  # 0 to OBJECTS, and more


def histograms(found: Sequence[Sequence[Detection]]) -> Features:
    """Of each image: its objects by class (n, SHAPES) and by colour (n, COLOURS), and their number."""
    classes = [[SHAPE_NAMES.index(d.cls) for d in detections] for detections in found]
    colours = [[COLOUR_NAMES.index(str(d.colour)) for d in detections] for detections in found]
    counts = torch.tensor([len(detections) for detections in found])
    return {"classes": tally(classes, SHAPES), "colours": tally(colours, COLOURS), "objects": counts}


def tally(items: Sequence[Sequence[int]], kinds: int) -> Tensor:
    return torch.stack([torch.tensor(row, dtype=torch.int64).bincount(minlength=kinds) for row in items])


def histogram_distances(features: Features, captions: Captions) -> dict[str, float]:
    """Images' histograms against their captions, both n; of class and colour 1 where nothing is found at all."""
    counts = features["objects"].clamp_max(COUNTS - 1).bincount(minlength=COUNTS)
    drawn = {"class_tv": features["classes"].sum(0), "colour_tv": features["colours"].sum(0), "count_tv": counts}
    prior = priors(captions)
    return {name: total_variation(found, prior[name]) for name, found in drawn.items()}


def priors(captions: Captions) -> dict[str, Tensor]:
    """Expected histograms of the scenes of these captions, not normalised."""
    shape = objects_of(captions)
    present = shape >= 0
    counts = present.sum(1).bincount(minlength=COUNTS)
    shapes, colours = shape[present].bincount(minlength=SHAPES), colour_shares(shape, captions)[present].sum(0)
    return {"class_tv": shapes, "colour_tv": colours, "count_tv": counts}


def colour_shares(shape: Tensor, captions: Captions) -> Tensor:
    """P(colour) of objects (n, OBJECTS): (n, OBJECTS, COLOURS)."""
    stated = torch.nn.functional.pad(captions.colour, (0, OBJECTS - 2), value=-1)
    stated = torch.where((captions.tag == COUNTING)[:, None], captions.colour[:, :1], stated)
    free = one_hot(SEEN_COLOURS, COLOURS).double().mean(1)[shape.clamp_min(0)]
    return torch.where(stated[..., None] >= 0, one_hot(stated.clamp_min(0), COLOURS).double(), free)
