"""The text encoders of Stable Diffusion 3 (arXiv 2403.03206), from a diffusers directory: two CLIPs and T5.

    clip      (n, 77, w_1 + w_2)   the last hidden layer but one of both CLIPs, side by side
    t5        (n, max_length, w)   T5's output; nothing is masked, so that padding carries meaning too
    pooled    (n, p_1 + p_2)       both CLIPs' projections

A network reads clip, padded with zeros to T5's width, and then t5, along the tokens: what diffusers' pipeline gives as
prompt_embeds. An encoder that is not there leaves zeros in its place, as half of all training prompts had it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fgm.utils.errors import UserError
from fgm.utils.held_weights import load_pretrained

CLIP_LENGTH = 77
CLIPS = ("text_encoder", "text_encoder_2")
CLASSES = {
    "text_encoder": ("CLIPTextModelWithProjection", "CLIPTokenizer"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "CLIPTokenizer"),
    "text_encoder_3": ("T5EncoderModel", "T5TokenizerFast"),
}


@dataclass(frozen=True)
class Encoder:
    """One tokenizer and its network."""

    tokenizer: Any
    net: Any
    length: int

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        told = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(prompts), **told).input_ids.to(self.net.device)

    def cuts(self, prompt: str) -> bool:
        return len(self.tokenizer(prompt, verbose=False).input_ids) > self.length


class TextEncoders:
    """Prompts -> what each encoder makes of them.

    Args:
        directory: of the pipeline.
        names: of the encoders to load.
        max_length: T5's tokens.
        dtype, device: that the encoders run in.
    """

    def __init__(
        self, directory: Path, names: Sequence[str], max_length: int, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        config = loads((directory / "transformer" / "config.json").read_text())
        self.width, self.pooled_width = config["joint_attention_dim"], config["pooled_projection_dim"]
        self.max_length, self.dtype, self.device = max_length, dtype, device
        self.encoders = {name: self.load(directory, name) for name in names}

    def load(self, directory: Path, name: str) -> Encoder:
        import transformers  # seconds to import, needed here alone

        transformers.utils.logging.disable_progress_bar()
        net_class, tokenizer_class = CLASSES[name]
        words = directory / name.replace("text_encoder", "tokenizer")
        if not words.is_dir():
            raise UserError(f"{words} is missing: it should hold the tokenizer of {name}")
        tokenizer = getattr(transformers, tokenizer_class).from_pretrained(words, local_files_only=True)
        net = load_pretrained(net_class, directory / name, f"its {name}", dtype=self.dtype)
        length = self.max_length if name == "text_encoder_3" else tokenizer.model_max_length
        return Encoder(tokenizer, net.to(self.device), length)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """clip, pooled and, where T5 is loaded, t5; on the CPU, in dtype."""
        words, pooled = self.clip(prompts)
        encoded = {"clip": words, "pooled": pooled}
        if "text_encoder_3" in self.encoders:
            t5 = self.encoders["text_encoder_3"]
            encoded["t5"] = t5.net(t5.tokens(prompts))[0]
        return {name: tensor.to("cpu", self.dtype).contiguous() for name, tensor in encoded.items()}

    def truncated(self, prompts: Sequence[str]) -> dict[str, int]:
        """How many prompts are longer than an encoder takes, by encoder."""
        return {name: sum(map(encoder.cuts, prompts)) for name, encoder in self.encoders.items()}

    def clip(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Both CLIPs' vectors and projections, which are equally wide; zeros for one that is missing."""
        found = {name: self.one_clip(name, prompts) for name in CLIPS if name in self.encoders}
        missing = self.pooled_width - sum(pooled.shape[-1] for _, pooled in found.values())
        zeros = torch.zeros(len(prompts), CLIP_LENGTH, missing, dtype=self.dtype, device=self.device)
        halves = [found.get(name, (zeros, zeros[:, 0])) for name in CLIPS] if found else [(zeros, zeros[:, 0])]
        words, pooled = zip(*halves, strict=True)
        return torch.cat(words, -1), torch.cat(pooled, -1)

    def one_clip(self, name: str, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoder = self.encoders[name]
        output = encoder.net(encoder.tokens(prompts), output_hidden_states=True)
        return output.hidden_states[-2], output[0]


def assemble(encoded: dict[str, Tensor], width: int, max_length: int) -> tuple[Tensor, Tensor]:
    """What a network reads: words (n, 77 + max_length, width) and pooled (n, p)."""
    clip = pad(encoded["clip"], (0, width - encoded["clip"].shape[-1]))
    t5 = encoded.get("t5", clip.new_zeros(len(clip), max_length, width))
    return torch.cat([clip, t5], 1), encoded["pooled"]
