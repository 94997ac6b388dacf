"""Tiny Mask2Former and CLIP of random weights, in the layout of the published ones."""

from pathlib import Path
from typing import Any

import torch


def save_mask2former(directory: Path, num_labels: int = 80) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64, **stages
    )  # fmt: skip
    labels: dict[str, Any] = {"num_labels": num_labels}
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12, **labels,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(directory)


def save_clip(directory: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["-"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    directory.mkdir(exist_ok=True)
    CLIPTokenizer({word: i for i, word in enumerate(words)}, []).save_pretrained(directory)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 77}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(
            CLIPConfig(text_config=layers | text, vision_config=layers | vision, projection_dim=8)
        ).save_pretrained(directory)
