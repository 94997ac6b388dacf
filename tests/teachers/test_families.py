"""Every family of flow transformers: the stock pipeline's latents are our Euler sampler's through the adapter.

The comparison covers sign, time, packing, positions, conditions and guidance at once; that it does is proved by breaking each.
Sigmas are multiples of 1/8, so that a pipeline's division of a timestep by 1000, which some transformers multiply again,
rounds nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from documents import blocks
from stock_families import batch, noise, pipe_of, pipe_side, stock
from tiny_families import HEADS, KL_VAE, ROPE, TINY, WORDS, Tiny, rows
from torch import Tensor
from torch.testing import assert_close

from fgm.flow.solvers import integrate
from fgm.networks import VelocityModel
from fgm.teachers.diffusers import guidance, layouts
from fgm.teachers.diffusers.adapter import TransformerVelocity
from fgm.teachers.diffusers.conditions import EncodedPrompts
from fgm.teachers.diffusers.families import FAMILIES, Family
from fgm.teachers.diffusers.guidance import FamilyGuidance
from fgm.teachers.diffusers.latents import FamilyAutoencoder
from fgm.utils.errors import UserError

CASES = [(name, guided) for name in TINY for guided in (False, True)]


def velocity(name: str, family: Family | None = None, embedded: float = 3.5) -> TransformerVelocity:
    tiny = TINY[name]
    family, shift = family or FAMILIES[tiny.pipeline], 3.0 if name == "cogview4" else 1.0
    return TransformerVelocity(
        pipe_of(name).transformer, family, tiny.shape, EncodedPrompts(rows(name)),
        embedded if name == "flux_dev" else None, shift, pipe_side(name),
    )  # fmt: skip


@torch.no_grad()
def ours(name: str, net: VelocityModel, times: Tensor, condition: Any = None) -> Tensor:
    condition = batch(name) if condition is None else condition
    return integrate(lambda x, t: net(x, t.expand(len(x)), condition), noise(name), times)


def codes(name: str, x_0: Tensor) -> Tensor:
    """FLUX.2's pipeline returns codes, and the others latents."""
    return (
        FamilyAutoencoder(pipe_of(name).vae, FAMILIES[TINY[name].pipeline].latents).to_code(x_0)
        if name == "flux2_klein"
        else x_0
    )


def guide(net: TransformerVelocity, guided: bool) -> VelocityModel:
    return FamilyGuidance(net, 2.5) if guided else net


@pytest.mark.parametrize("name, guided", CASES)
def test_stock_pipelines_latents_are_our_euler_samplers(name: str, guided: bool) -> None:
    expected, times = stock(name, guided)
    drawn = codes(name, ours(name, guide(velocity(name), guided), times))
    assert expected.std() > 0.5 and len(times) >= 4
    assert_close(drawn, expected, rtol=1e-5, atol=1e-5)


class Transposed:
    """A layout that exchanges rows and columns on both ways."""

    def __init__(self, layout: Any) -> None:
        self.layout, self.patch = layout, layout.patch

    def pack(self, x: Tensor) -> Any:
        return self.layout.pack(x.mT.contiguous())

    def unpack(self, y: Any, x: Tensor) -> Tensor:
        return self.layout.unpack(y, x.mT.contiguous()).mT


def other_more(family: Family) -> Callable[..., dict[str, Any]]:
    """The arguments that follow from the shapes, halved; one row of tokens in place of two for Qwen-Image."""

    def more(net: Any, x: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        right = family.more(net, x, given)
        wrong = {
            key: value / 2 for key, value in right.items() if isinstance(value, Tensor) and value.is_floating_point()
        }
        return right | (wrong or {"img_shapes": [[(1, 1, 4)]] * len(x)})

    return more


MISTAKES: dict[str, Callable[[Family], dict[str, Any]]] = {
    "sign": lambda family: {"sign": -family.sign},
    "time": lambda family: {"time": lambda net, t: family.time(net, 1 - t)},
    "scale of time": lambda family: {"time": lambda net, t: 0.9 * family.time(net, t)},
    "packing": lambda family: {"layout": Transposed(family.layout)},
    "more": lambda family: {"more": other_more(family)},
    "guidance": lambda family: {
        "guidance": guidance.excess if family.guidance is guidance.classifier_free else guidance.classifier_free
    },
}


def broken() -> list[tuple[str, str]]:
    cases = [(name, mistake) for name in TINY for mistake in MISTAKES]
    return [case for case in cases if case[1] != "more" or FAMILIES[TINY[case[0]].pipeline].more is not layouts.nothing]


@pytest.mark.parametrize("name, mistake", broken())
def test_specification_with_a_mistake_fails_parity(name: str, mistake: str) -> None:
    (expected, times), family = stock(name, True), FAMILIES[TINY[name].pipeline]
    wrong = replace(family, **MISTAKES[mistake](family))
    difference = codes(name, ours(name, guide(velocity(name, wrong), True), times)) - expected
    assert difference.abs().max() > 3e-4


def parts() -> list[tuple[str, str]]:
    return [(name, part) for name, tiny in TINY.items() for part in FAMILIES[tiny.pipeline].arguments]


@pytest.mark.parametrize("name, part", parts())
def test_each_part_of_a_condition_matters(name: str, part: str) -> None:
    expected, times = stock(name, False)
    net, table = velocity(name), rows(name)
    changed = [row | {part: ~row[part] if row[part].dtype == torch.bool else -row[part]} for row in table]
    net.prompts = EncodedPrompts(changed)
    assert (codes(name, ours(name, net, times)) - expected).abs().max() > 3e-4


def test_embedded_guidance_is_an_input_of_flux_dev() -> None:
    expected, times = stock("flux_dev", False)
    assert (ours("flux_dev", velocity("flux_dev", embedded=1.0), times) - expected).abs().max() > 3e-4
    for name, scale in (("flux_dev", None), ("flux_schnell", 3.5)):
        family = FAMILIES["FluxPipeline"]
        with pytest.raises(UserError, match="embedded_guidance"):
            TransformerVelocity(pipe_of(name).transformer, family, (4, 4, 4), embedded_guidance=scale)


def test_family_of_the_documentation_passes_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in blocks("docs/teachers.md", "python") if "LongCatImagePipeline" in block]
    arguments = {"in_channels": 16, "joint_attention_dim": 16, "pooled_projection_dim": 8} | HEADS | ROPE
    monkeypatch.setitem(TINY, "longcat", Tiny(
        "LongCatImagePipeline",
        ("LongCatImageTransformer2DModel", arguments | {"num_layers": 1, "num_single_layers": 1}), KL_VAE, WORDS,
        call={"enable_prompt_rewrite": False}, parts=("text_encoder", "tokenizer", "text_processor"),
    ))  # fmt: skip
    encode = pipe_of("longcat").encode_prompt  # stock counts the prompts' texts, also where it is given encodings

    def encode_given(prompt: Any, prompt_embeds: Tensor, num_images_per_prompt: int) -> Any:
        return encode([""] * len(prompt_embeds), num_images_per_prompt, prompt_embeds)

    monkeypatch.setattr(pipe_of("longcat"), "encode_prompt", encode_given)
    try:
        exec(code, {})
        for guided in (False, True):
            expected, times = stock("longcat", guided)
            assert_close(ours("longcat", guide(velocity("longcat"), guided), times), expected, rtol=1e-5, atol=1e-5)
    finally:
        FAMILIES.pop("LongCatImagePipeline", None)
