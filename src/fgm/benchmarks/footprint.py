"""The memory of a distillation, from its config alone: every network is built on the meta device, and holds nothing.

    weights       teacher, which is the start too, generator, online network and average
    gradients     of the larger of the two that are trained: one network is stepped at a time
                  (both, where DDP's buckets keep them)
    optimizer     two moments for each trained weight, in its type (Adam and AdamW; Muon keeps one, and less)
    activations   what autograd keeps for the backward of the generator's turn, for batch_size samples

Activations are counted by running the turn's networks on meta tensors of one sample, and summing what autograd packs
once per storage, weights left out and attention as fused kernels have it; they are linear in the batch. Under bf16
compute they are taken as half of that, and the weights' casts are kept besides. Not counted: the context,
fragmentation, and the kernels' workspaces. Nothing here has been compared with a GPU's measured peak yet.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fgm.networks.sd3 import untrained

CARDS = {  # GB of memory
    "RTX 3060": 12,
    "T4, RTX 4080": 16,
    "RTX 4090, L4, A10": 24,
    "RTX 5090": 32,
    "A6000, L40S": 48,
    "A100, H100": 80,
    "H200": 141,
    "B200": 180,
}
TOKENS = 333  # of a prompt: two CLIPs' 77 and T5's 256
RESERVED = 1.1  # of the sum, for what is not counted, and 1 GB of context


@dataclass(frozen=True)
class Footprint:
    """Bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def fits(self) -> list[str]:
        """The cards that hold it."""
        return [card for card, size in CARDS.items() if self.total * RESERVED + 1e9 <= size * 1e9]


def size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held(net: nn.Module) -> int:
    """Of weights and buffers, each once."""
    return size({id(t): t for t in (*net.parameters(), *net.buffers())}.values())


def kept_for_backward(work: Callable[[], object], *nets: nn.Module) -> int:
    """Bytes that autograd keeps when work is done, weights and buffers left out."""
    weights = {t.untyped_storage()._cdata for net in nets for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = tensor
        return tensor

    with Fused(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return total


class Fused(TorchFunctionMode):
    """Attention keeps its inputs, its output and a sum for each query, as fused kernels do; no matrix of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return FusedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class FusedAttention(torch.autograd.Function):
    """Its memory alone: there is no backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1]))
        return out


def of_distillation(
    net: Any,
    batch: int,
    guided: bool,
    online_guided: bool,
    two_stage: bool,
    half: bool,
    copies: bool,
    half_teacher: bool,
) -> Footprint:
    """Of whole networks of one architecture.

    Args:
        net: it, on the meta device.
        batch: samples a device.
        guided, online_guided: whether teacher and online network are called on doubled batches.
        two_stage: whether one of their graphs is there at a time.
        half: bf16 compute.
        half_teacher: whether the teacher is kept in bf16.
        copies: DDP, whose buckets keep both networks' gradients.
    """
    trained, teachers, onlines = size(net.parameters()), 1 + guided, 1 + online_guided
    if checkpointed(net):
        calls = 1 + (max(teachers, onlines) if two_stage else teachers + onlines)
        graphs = block_inputs(net) * calls + one_block(net) * max(teachers, onlines)
    else:
        passing = activations_of(net, trained=False)
        graphs = activations_of(net) + passing * (max(teachers, onlines) if two_stage else teachers + onlines)
    casts = 3 * trained // 2 if half and not checkpointed(net) else 0
    kept = batch * graphs // (2 if half else 1) + casts
    weights = 3 * held(net) + held(net) // (2 if half_teacher else 1)
    return Footprint(weights, trained * (1 + copies), 4 * trained, kept)


def activations_of(net: Any, trained: bool = True) -> int:
    """Bytes of one sample's graph through a network on the meta device, whose weights get gradients or do not."""
    x_t, t = torch.empty(1, *net.shape, device="meta", requires_grad=True), torch.empty(1, device="meta")
    net.requires_grad_(trained)
    return kept_for_backward(lambda: net(x_t, t, condition_of(net)), net)


def block_inputs(net: Any) -> int:
    """Bytes of what checkpointing keeps of one sample: each block's tokens, of image and prompt."""
    config = net.transformer.config
    tokens = (net.shape[-1] // config.patch_size) ** 2 + TOKENS
    return len(net.transformer.transformer_blocks) * tokens * config.caption_projection_dim * 4


def one_block(net: Any) -> int:
    """Bytes of the block that is computed again."""
    return activations_of(net) // len(net.transformer.transformer_blocks)


def condition_of(net: Any) -> Tensor | None:
    length = getattr(getattr(net, "text", None), "length", None)
    shape = (1,) if length is None else (1, length)
    has_condition = net.num_classes or hasattr(net, "text")
    return torch.zeros(shape, dtype=torch.int64, device="meta") if has_condition else None


def checkpointed(net: nn.Module) -> bool:
    return getattr(net, "wants_checkpointing", False)


class MetaText(nn.Module):
    """Encodings of the width and length of Stable Diffusion 3's, which hold nothing."""

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        n = len(condition)
        return torch.empty(n, TOKENS, 4096, device="meta"), torch.empty(n, 2048, device="meta")


def sd3_on_meta(size: int, checkpointing: bool, dual: bool) -> Any:
    """SD3 medium, or SD3.5 medium with dual attention; its graph is counted whole, and then by what a block keeps."""
    shape: dict[str, Any] = {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
        "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
        "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384 if dual else 192,
    }  # fmt: skip
    shape |= {"dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"} if dual else {}
    with torch.device("meta"):
        net: Any = untrained(shape, MetaText(), size)
    net.wants_checkpointing = checkpointing
    return net
