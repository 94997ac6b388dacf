"""A complete StableDiffusion3Pipeline of random weights, 32 pixels a side: what tests of the SD3 experiments load."""

import string
from pathlib import Path
from typing import Any

import torch

SIZE = 32  # pixels; latents (4, 4, 4)
TRANSFORMER: dict[str, Any] = {
    "sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 32,
    "pos_embed_max_size": 4,
}  # fmt: skip


def transformer(seed: int = 0) -> Any:
    from diffusers import SD3Transformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SD3Transformer2DModel(**TRANSFORMER)
        for weight in net.parameters():  # adaLN starts at zero, which would hide terms
            torch.nn.init.normal_(weight, std=0.15)
    return net


def vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(4, 4, 4, 8), layers_per_block=1,
        latent_channels=4, norm_num_groups=2, sample_size=SIZE, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=1.5305, shift_factor=0.0609,
    )  # fmt: skip


def clip_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def clip_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=520, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=77, projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    signs = string.ascii_letters + string.digits + ",.'-"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((sign, -3.0) for sign in signs)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=32)


def t5_encoder() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=80, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
            is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip


def pipeline(seed: int = 0) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return StableDiffusion3Pipeline(
            transformer=transformer(seed), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(),
            text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), text_encoder_2=clip_encoder(),
            tokenizer_2=clip_tokenizer(), text_encoder_3=t5_encoder(), tokenizer_3=t5_tokenizer(),
        )  # fmt: skip


def save_tiny_pipeline(directory: Path, seed: int = 0) -> Path:
    """The pipeline's directory, under 1 MB."""
    pipeline(seed).save_pretrained(directory)
    return directory
