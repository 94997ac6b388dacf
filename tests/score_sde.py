"""score_sde's DDPM++ (arXiv 2011.13456), which rectified flow trains: small files of it, and a reference by formulas.

Its modules are one list in the order of their calls; here each has a kind, and the network calls them in turn.
"""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, group_norm, interpolate, silu

Modules = list[tuple[str, int, int]]  # kind, inputs, outputs


def modules(width: int, multipliers: tuple[int, ...], blocks: int, attention: tuple[int, ...], size: int) -> Modules:
    kinds: Modules = [("linear", width, 4 * width), ("linear", 4 * width, 4 * width), ("conv", 3, width)]
    c, skips = width, [width]
    for level, m in enumerate(multipliers):
        for _ in range(blocks):
            kinds.append(("res", c, m * width))
            c = m * width
            kinds += [("attention", c, c)] if size >> level in attention else []
            skips.append(c)
        if level < len(multipliers) - 1:
            kinds.append(("down", c, c))
            skips.append(c)
    kinds += [("middle", c, c), ("attention", c, c), ("middle", c, c)]
    for level, m in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            kinds.append(("joined", c + skips.pop(), m * width))
            c = m * width
        kinds += [("attention", c, c)] if size >> level in attention else []
        kinds += [("up", c, c)] if level else []
    return [*kinds, ("norm", c, c), ("conv", c, 3)]


def state_of(kinds: Modules, width: int) -> dict[str, Tensor]:
    """A random state dict in their order, with the table of noises that all their networks carry."""
    generator, state = torch.Generator().manual_seed(0), {"sigmas": torch.linspace(50, 0.01, 1000)}

    def add(name: str, *shape: int, bias: str = "bias", weight: str = "weight") -> None:
        fan = max(1, int(torch.tensor(shape[1:]).prod()))
        state[f"{name}.{weight}"] = torch.randn(shape, generator=generator) / fan**0.5
        outputs = shape[1] if weight == "W" else shape[0]
        state[f"{name}.{bias}"] = 0.1 * torch.randn(outputs, generator=generator)

    for i, (kind, n, m) in enumerate(kinds):
        at = f"all_modules.{i}"
        if kind == "attention":
            add(f"{at}.GroupNorm_0", n)
            for j in range(4):
                add(f"{at}.NIN_{j}", n, n, weight="W", bias="b")
        elif kind in ("linear", "conv", "norm"):
            add(at, *{"linear": (m, n), "conv": (m, n, 3, 3), "norm": (n,)}[kind])
        else:
            add(f"{at}.GroupNorm_0", n), add(f"{at}.Conv_0", m, n, 3, 3), add(f"{at}.Dense_0", m, 4 * width)
            add(f"{at}.GroupNorm_1", m), add(f"{at}.Conv_1", m, m, 3, 3)
            if n != m or kind in ("up", "down"):
                add(f"{at}.Conv_2", m, n, 1, 1)
    return state


class ScoreUNet:
    """The network of a state dict and its modules' kinds; times are theirs, 0 to 999."""

    def __init__(self, state: dict[str, Tensor], kinds: Modules) -> None:
        self.state, self.kinds = state, kinds

    def norm(self, name: str, x: Tensor) -> Tensor:
        w = self.state[f"{name}.weight"]
        return group_norm(x, min(len(w) // 4, 32), w, self.state[f"{name}.bias"], 1e-6)

    def conv(self, name: str, x: Tensor) -> Tensor:
        w = self.state[f"{name}.weight"]
        return conv2d(x, w, self.state[f"{name}.bias"], padding=w.shape[-1] // 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def nin(self, name: str, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.state[f"{name}.W"]) + self.state[f"{name}.b"][:, None, None]

    def res(self, name: str, x: Tensor, temb: Tensor, kind: str) -> Tensor:
        h = silu(self.norm(f"{name}.GroupNorm_0", x))
        if kind == "up":
            h, x = (interpolate(a, scale_factor=2.0, mode="nearest") for a in (h, x))
        if kind == "down":
            h, x = avg_pool2d(h, 2), avg_pool2d(x, 2)
        h = self.conv(f"{name}.Conv_0", h) + self.linear(f"{name}.Dense_0", silu(temb))[:, :, None, None]
        h = self.conv(f"{name}.Conv_1", silu(self.norm(f"{name}.GroupNorm_1", h)))
        x = self.conv(f"{name}.Conv_2", x) if f"{name}.Conv_2.weight" in self.state else x
        return (x + h) / 2**0.5

    def attend(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.GroupNorm_0", x)
        q, k, v = (self.nin(f"{name}.NIN_{j}", h).flatten(2) for j in range(3))
        w = (torch.einsum("bcn,bcm->bnm", q, k) * x.shape[1] ** -0.5).softmax(2)
        h = self.nin(f"{name}.NIN_3", torch.einsum("bnm,bcm->bcn", w, v).reshape(x.shape))
        return (x + h) / 2**0.5

    def __call__(self, x: Tensor, times: Tensor) -> Tensor:
        half = self.state["all_modules.0.weight"].shape[1] // 2
        angle = times[:, None] * torch.exp(-torch.arange(half) * np.log(10_000) / (half - 1))
        temb = self.linear("all_modules.0", torch.cat([angle.sin(), angle.cos()], 1))
        temb = self.linear("all_modules.1", silu(temb))
        x, skips, encoding = self.conv("all_modules.2", x), [], True
        skips.append(x)
        for i, (kind, *_) in zip(count(3), self.kinds[3:]):
            name = f"all_modules.{i}"
            if kind in ("middle", "joined"):
                encoding = False
            if kind == "attention":
                x = self.attend(name, x)
                skips = [*skips[:-1], x] if encoding else skips
            elif kind == "norm":
                return self.conv(f"all_modules.{i + 1}", silu(self.norm(name, x)))
            else:
                x = self.res(name, torch.cat([x, skips.pop()], 1) if kind == "joined" else x, temb, kind)
                skips = [*skips, x] if encoding else skips
        raise AssertionError("the list ends with a norm and a convolution")


def write_rectified_flow(path: Path, state: dict[str, Tensor], legacy: bool = False, **changes: Any) -> None:
    """A training's checkpoint, whose average is the state and whose last weights are half of that.

    legacy: as torch.save was before its zips and numpy before its second version.
    """
    shadow = [weight for name, weight in state.items() if name != "sigmas"]
    content = {
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(2e-4), "betas": (0.9, 0.999), "params": [0, 1]}]},
        "model": {f"module.{name}": weight if name == "sigmas" else 0.5 * weight for name, weight in state.items()},
        "ema": {"decay": 0.999999, "num_updates": 800_000, "shadow_params": shadow}, "step": 800_000,
    }  # fmt: skip
    torch.save(content | changes, path, _use_new_zipfile_serialization=not legacy)
    if legacy:
        old = path.read_bytes().replace(b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar")
        assert old != path.read_bytes()
        path.write_bytes(old)
