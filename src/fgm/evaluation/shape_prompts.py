"""ShapeEval's questions: GenEval's form, metadata and tags over prompts of shapes.

A tag has few prompts (four of single_object, twelve of two_object), so that each is asked several times: every tag
gets the same number of images, dealt to its prompts as evenly as can be; the score is the mean of the tags' means.
Prompts that bind a held-out pair of colour and shape occur in colors and color_attr, at their share of all prompts.
"""

import torch

from fgm.data.text.geneval.vocabulary import Vocabulary
from fgm.data.text.shapes.grammar import TAGS
from fgm.data.text.shapes.metadata import Metadata, every, metadata
from fgm.data.text.shapes.vocabulary import COLOUR_NAMES, EASY, SHAPE_NAMES
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

VOCABULARY = Vocabulary(tuple(SHAPE_NAMES), tuple(COLOUR_NAMES), tuple(TAGS))


def questions(
    prompts_per_tag: int = 100, images_per_tag: int = 400, seed: int = 0, shapes: int = EASY
) -> dict[str, list[tuple[Metadata, int]]]:
    """Up to prompts_per_tag prompts of every tag, chosen by the seed, and how many images are asked of each."""
    if not 1 <= prompts_per_tag <= images_per_tag:
        raise UserError(
            f"{images_per_tag} images cannot be shared among {prompts_per_tag} prompts: ask for at least one each"
        )
    asked = {}
    for tag in TAGS:
        captions = every(tag, shapes)
        order = torch.randperm(len(captions), generator=keyed_generator(seed, "questions", tag, index=0))
        lines = metadata(captions[order[:prompts_per_tag].sort().values])
        asked[tag] = list(zip(lines, deal(images_per_tag, len(lines)), strict=True))
    return asked


def deal(images: int, prompts: int) -> list[int]:
    """Shares that differ by at most one."""
    return [images // prompts + (i < images % prompts) for i in range(prompts)]
