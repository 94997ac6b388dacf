"""The words of GenEval: 80 object classes in COCO's order, ten colours, six tags and four relations.

Three classes are not called as in COCO: mouse, remote and keyboard became "computer mouse", "tv remote" and "computer
keyboard". A detector that was trained on COCO is therefore read by the index of the label, never by its name.
"""

from dataclasses import dataclass

OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNTING = "counting"
GRAMMAR = "grammar"  # in place of the path of prompts: those of grammar.py
PROMPTS_PER_TAG = {
    "single_object": 80, "two_object": 99, COUNTING: 80, "colors": 94, "position": 100, "color_attr": 100,
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What a prompt may ask for and a detector may name."""

    classes: tuple[str, ...] = OBJECTS
    colours: tuple[str, ...] = COLOURS
    tags: tuple[str, ...] = tuple(PROMPTS_PER_TAG)


GENEVAL = Vocabulary()
