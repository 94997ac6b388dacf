"""Encoded prompts of any family, by index: a file of encodings, and the batches that a transformer takes.

    FILE.safetensors     "<i>.<name>" for prompt i, each without a batch axis: 0.prompt_embeds (tokens, width), ...
                         metadata: prompts, their texts as a JSON list

Prompt 0 is the null condition of guidance, as a pipeline encodes its empty negative prompt. Names are those of the
pipeline's arguments. A file is made once, where the text encoders fit:

    pipe = diffusers.DiffusionPipeline.from_pretrained("<model>", transformer=None, vae=None).to("cuda")
    save_prompts(encode_prompts(pipe, prompts), ["", *prompts], "prompts.safetensors")
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from fgm.teachers.diffusers.families import known_family
from fgm.utils.errors import UserError, first_line
from fgm.utils.pretrained import fingerprint
from fgm.utils.validation import validated

Condition = Mapping[str, Any]  # name -> (n, ...), or a list of n tensors
NEGATIVE = "negative_"
OWN = ("prompt", "prompt_2", "prompt_3", "num_images_per_prompt", "num_videos_per_prompt")


class EncodedPrompts(nn.Module):
    """Prompt indices (n,) int64 -> a condition of n prompts on the indices' device. No weights: copies share it.

    Args:
        rows: one for each prompt, all with the same names.
    """

    def __init__(self, rows: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        if not rows or any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError("encoded prompts: give at least the null prompt, and the same names for each prompt")
        self.rows, self.names = list(rows), set(rows[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def forward(self, indices: Tensor) -> dict[str, list[Tensor]]:
        chosen = [self.rows[i] for i in indices.tolist()]
        return {name: [row[name].to(indices.device) for row in chosen] for name in self.rows[0]}


def encode_prompts(pipe: Any, prompts: Sequence[str], batch: int = 1) -> list[dict[str, Tensor]]:
    """Return the encodings of the null prompt and of prompts, by the pipeline's encode_prompt with its call's defaults.

    Args:
        pipe: a diffusers pipeline of a known family, with its text encoders and tokenizers.
        prompts: to be encoded.
        batch: prompts at once. CogView4 pads a batch to its longest prompt and has no mask: give it all at once.

    Raises:
        UserError: the pipeline is of another family.
    """
    family, call = known_family(type(pipe).__name__), inspect.signature(pipe.__call__).parameters
    takes = inspect.signature(pipe.encode_prompt).parameters
    options = {
        n: p.default for n, p in call.items() if n in takes and n not in OWN and "embeds" not in n and "mask" not in n
    }
    options |= {n: None for n in ("prompt_2", "prompt_3") if n in takes}
    guided = "do_classifier_free_guidance" in takes  # then the null prompt is the negative one, which may differ

    def encode(texts: list[str], null: bool) -> list[dict[str, Tensor]]:
        switch = {"do_classifier_free_guidance": null} if guided else {}
        made = dict(zip(family.encoded, pipe.encode_prompt(prompt=texts, **options, **switch), strict=True))
        prefix = NEGATIVE if null and guided else ""
        rows = [{n: made[prefix + n] for n in family.arguments} for _ in texts]
        for i, row in enumerate(rows):  # Qwen-Image returns no mask where no token is padding
            row |= {
                n: torch.ones(len(made[prefix + "prompt_embeds"][i])).bool() if x is None else x[i]
                for n, x in row.items()
            }
        return rows

    with torch.no_grad():
        rows = encode([""], null=True)
        for start in range(0, len(prompts), batch):
            rows += encode(list(prompts[start : start + batch]), null=False)
    return rows


def save_prompts(rows: Sequence[Mapping[str, Tensor]], texts: Sequence[str], file: Path | str) -> None:
    """Write encodings and their texts, the null prompt's first; see the module's docstring."""
    tensors = {f"{i}.{name}": x.contiguous().cpu() for i, row in enumerate(rows) for name, x in row.items()}
    save_file(tensors, file, metadata={"prompts": json.dumps(list(texts))})


@dataclass(frozen=True)
class PromptIndex:
    """The prompts of a file, the null one first, and a digest of their encodings."""

    prompts: list[str]
    digest: str


@validated
@dataclass(frozen=True)
class PromptFile:
    """A file of encoded prompts."""

    file: str

    def read_index(self) -> PromptIndex:
        """
        Raises:
            UserError: the file is missing, damaged or has no texts.
        """
        try:
            with safe_open(self.file, "pt") as opened:
                texts = json.loads((opened.metadata() or {}).get("prompts", "null"))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.file}: no encoded prompts ({first_line(error)}); docs/teachers.md makes them"
            ) from error
        if not isinstance(texts, list) or len(texts) < 2:
            raise UserError(
                f"{self.file}: needs the texts of its prompts, the null one first; docs/teachers.md makes it"
            )
        return PromptIndex([str(text) for text in texts], fingerprint([Path(self.file)]))

    def read(self) -> EncodedPrompts:
        """
        Raises:
            UserError: see read_index; or the encodings are not those of the texts.
        """
        count, rows = len(self.read_index().prompts), {}
        for name, tensor in load_file(self.file).items():
            number, _, part = name.partition(".")
            rows.setdefault(number, {})[part] = tensor
        if rows.keys() != {str(i) for i in range(count)} or any(
            row.keys() != rows["0"].keys() for row in rows.values()
        ):
            raise UserError(f"{self.file}: needs the same encodings of each of its {count} prompts, numbered from 0")
        return EncodedPrompts([rows[str(i)] for i in range(count)])


@validated
def load_prompts(file: str) -> EncodedPrompts:
    """Read a file of encoded prompts, see PromptFile.read."""
    return PromptFile(file).read()


def batched(name: str, parts: Any, masked: bool) -> Tensor:
    """Return one tensor (n, ...) of a tensor or of a list of n.

    Raises:
        ValueError: parts have several lengths, and no mask says which tokens are padding.
    """
    if isinstance(parts, Tensor):
        return parts
    longest = max(len(part) for part in parts)
    if not masked and any(len(part) != longest for part in parts):
        raise ValueError(f"{name} has several lengths and no mask: pad encodings to one length, as the pipeline does")
    return torch.stack([pad(part, (0, 0) * (part.ndim - 1) + (0, longest - len(part))) for part in parts])
