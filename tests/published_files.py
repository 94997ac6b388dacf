"""Small checkpoints in the very formats of EDM, EDM2 and torchcfm, written without their code.

EDM pickles each module as a call of torch_utils.persistence._reconstruct_persistent_obj on a dict that holds its
source; here a stand-in has that name while a file is written. guided-diffusion's U-Net, which torchcfm
uses, is written out below by its formulas, as the reference for the renaming.
"""

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

NAMES = {"EDM2UNet": "UNet"}  # EDM2's own
SOURCE = "raise SystemExit('the source in this file was run')"


@contextmanager
def foreign_modules() -> Iterator[tuple[Any, Any]]:
    """torch_utils.persistence and dnnlib.util as a pickle names them."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    modules = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise SystemExit("the reader called a function of the file's choice")

    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    modules["dnnlib.util"].EasyDict = easy  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield _reconstruct_persistent_obj, easy
    finally:
        for name in names:
            del sys.modules[name]


class Pickled:
    """A module as EDM pickles it: the name of its class, its source, and its state."""

    def __init__(self, reconstruct: Any, name: str, state: dict[str, Any]) -> None:
        self.reconstruct, self.name, self.state = reconstruct, name, state

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.name, "state": self.state}
        return self.reconstruct, (meta,), None


def as_pickled(net: nn.Module, reconstruct: Any, name: str, arguments: dict[str, Any]) -> Any:
    """net's tree; ModuleDicts stay torch's, as EDM's do."""
    children = OrderedDict(
        (key, as_pickled(child, reconstruct, NAMES.get(type(child).__name__, type(child).__name__), {}))
        for key, child in net._modules.items()
        if child is not None
    )
    if isinstance(net, nn.ModuleDict):
        holder = nn.ModuleDict()
        holder.__dict__["_modules"] = children
        return holder
    buffers = {key: buffer for key, buffer in net._buffers.items() if key not in net._non_persistent_buffers_set}
    state = {"training": False, "_parameters": net._parameters, "_buffers": buffers, "skip_scale": np.sqrt(0.5),
             "_modules": children, "_init_args": (), "_init_kwargs": arguments, "_forward_hooks": {}}  # fmt: skip
    return Pickled(reconstruct, name, state)


def write_edm(path: Path, model: nn.Module, name: str = "EDMPrecond", **arguments: Any) -> None:
    """A snapshot of {ema, loss_fn, augment_pipe, dataset_kwargs}; the network's augmentation weights are made up."""
    with foreign_modules() as (reconstruct, easy):
        inner = as_pickled(model, reconstruct, type(model).__name__, {})
        augment = Pickled(
            reconstruct, "Linear", {"_parameters": {"weight": nn.Parameter(torch.ones(2, 9))}, "_modules": {}}
        )
        inner.state["_modules"]["map_augment"] = augment
        options = {"dropout": 0.13, "augment_dim": 9, "use_fp16": True, **arguments}
        state = {"_parameters": {}, "_buffers": {}, "_modules": OrderedDict(model=inner), "_init_kwargs": easy(options)}
        loss = Pickled(reconstruct, "EDMLoss", {"P_mean": -1.2})
        snapshot = {"ema": Pickled(reconstruct, name, state), "loss_fn": loss, "augment_pipe": None,
                    "dataset_kwargs": easy(path="cifar10.zip")}  # fmt: skip
        path.write_bytes(pickle.dumps(snapshot))


def write_edm2(path: Path, model: nn.Module, name: str = "Precond", **arguments: Any) -> None:
    """A snapshot of {encoder, dataset_kwargs, loss_fn, ema}, in float16; the uncertainty's weights are made up."""
    half = deepcopy(model).half()
    with foreign_modules() as (reconstruct, easy):
        parts = OrderedDict(unet=as_pickled(half, reconstruct, "UNet", {}))
        waves, row = {"freqs": torch.ones(4), "phases": torch.ones(4)}, {"weight": nn.Parameter(torch.ones(1, 4))}
        for part, kind, tensors in (("logvar_fourier", "MPFourier", waves), ("logvar_linear", "MPConv", row)):
            group = "_buffers" if kind == "MPFourier" else "_parameters"
            parts[part] = Pickled(reconstruct, kind, {"_parameters": {}, "_modules": {}, group: tensors})
        options = {"use_fp16": True, "dropout": 0.1, **arguments}
        state = {"_parameters": {}, "_buffers": {}, "_modules": parts, "_init_args": (), "_init_kwargs": options,
                 "sigma_data": 0.5, "use_fp16": True}  # fmt: skip
        snapshot = easy(encoder=Pickled(reconstruct, "StandardRGBEncoder", {"_init_args": (), "_init_kwargs": {}}),
                        dataset_kwargs=easy(path="img64.zip"), loss_fn=Pickled(reconstruct, "EDM2Loss", {"P_std": 1.6}),
                        ema=Pickled(reconstruct, name, state))  # fmt: skip
        path.write_bytes(pickle.dumps(snapshot))


class GuidedUNet(nn.Module):
    """guided-diffusion's U-Net from its state dict: names as in the file, arithmetic by the formulas."""

    def __init__(self, state: dict[str, Tensor], groups: int, head: int) -> None:
        super().__init__()
        self.state, self.groups, self.head = state, groups, head

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        w = self.state[f"{name}.weight"]
        return nn.functional.conv2d(x, w, self.state[f"{name}.bias"], stride, w.shape[-1] // 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, self.groups, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def res(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        silu = nn.functional.silu
        h = self.conv(f"{name}.in_layers.2", silu(self.norm(f"{name}.in_layers.0", x)))
        h = h + self.linear(f"{name}.emb_layers.1", silu(emb))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", silu(self.norm(f"{name}.out_layers.0", h)))
        return h + (self.conv(f"{name}.skip_connection", x) if self.has(f"{name}.skip_connection") else x)

    def attend(self, name: str, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        w = self.state[f"{name}.qkv.weight"][:, :, 0]
        qkv = w @ self.norm(f"{name}.norm", x).flatten(2) + self.state[f"{name}.qkv.bias"][:, None]
        q, k, v = qkv.reshape(b * (c // self.head), 3 * self.head, -1).split(self.head, 1)
        a = v @ (q.transpose(1, 2) @ k / self.head**0.5).softmax(2).transpose(1, 2)
        out = (
            self.state[f"{name}.proj_out.weight"][:, :, 0] @ a.reshape(b, c, -1)
            + self.state[f"{name}.proj_out.bias"][:, None]
        )
        return x + out.reshape(x.shape)

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        for i in range(3):
            here = f"{name}.{i}"
            if self.has(f"{here}.in_layers.2"):
                x = self.res(here, x, emb)
            elif self.has(f"{here}.qkv"):
                x = self.attend(here, x)
            elif self.has(f"{here}.op"):
                x = self.conv(f"{here}.op", x, 2)
            elif self.has(f"{here}.conv"):
                x = self.conv(f"{here}.conv", interpolate(x, scale_factor=2.0, mode="nearest"))
        return x

    def forward(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        half = self.state["time_embed.0.weight"].shape[1] // 2
        angle = t[:, None] * torch.exp(-torch.arange(half) / half * torch.log(torch.tensor(10_000.0)))
        emb = self.linear("time_embed.0", torch.cat([angle.cos(), angle.sin()], 1))
        emb = self.linear("time_embed.2", nn.functional.silu(emb))
        emb = emb if y is None else emb + self.state["label_emb.weight"][y]
        x, skips, i = self.conv("input_blocks.0.0", x), [], 1
        skips.append(x)
        while any(name.startswith(f"input_blocks.{i}.") for name in self.state):
            x = self.block(f"input_blocks.{i}", x, emb)
            skips.append(x)
            i += 1
        x = self.block("middle_block", x, emb)
        for j in range(i):
            x = self.block(f"output_blocks.{j}", torch.cat([x, skips.pop()], 1), emb)
        return self.conv("out.2", nn.functional.silu(self.norm("out.0", x)))


class GuidedState:
    """Random tensors by the names of that network's state dict; emb is the width of its time's embedding."""

    def __init__(self, emb: int) -> None:
        self.tensors, self.emb, self.generator = dict[str, Tensor](), emb, torch.Generator().manual_seed(0)

    def add(self, name: str, *shape: int) -> None:
        fan = max(1, int(torch.tensor(shape[1:]).prod()))
        self.tensors[f"{name}.weight"] = torch.randn(shape, generator=self.generator) / fan**0.5
        self.tensors[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.generator)

    def res(self, name: str, i: int, o: int) -> None:
        for leaf, shape in (("in_layers.0", (i,)), ("in_layers.2", (o, i, 3, 3)), ("emb_layers.1", (o, self.emb)),
                            ("out_layers.0", (o,)), ("out_layers.3", (o, o, 3, 3))):  # fmt: skip
            self.add(f"{name}.{leaf}", *shape)
        if i != o:
            self.add(f"{name}.skip_connection", o, i, 1, 1)

    def attend(self, name: str, c: int) -> None:
        for leaf, shape in (("norm", (c,)), ("qkv", (3 * c, c, 1)), ("proj_out", (c, c, 1))):
            self.add(f"{name}.{leaf}", *shape)

    def down(self, stem: int, widths: list[int], blocks: int, attends: list[bool]) -> list[int]:
        """The channels of each skip; a level's blocks, and then its halving."""
        skips = [stem]
        for level, (width, attend) in enumerate(zip(widths, attends, strict=True)):
            for _ in range(blocks):
                self.res(f"input_blocks.{len(skips)}.0", skips[-1], width)
                if attend:
                    self.attend(f"input_blocks.{len(skips)}.1", width)
                skips.append(width)
            if level < len(widths) - 1:
                self.add(f"input_blocks.{len(skips)}.0.op", width, width, 3, 3)
                skips.append(width)
        return skips

    def up(self, widths: list[int], blocks: int, attends: list[bool], skips: list[int]) -> None:
        c, i = widths[-1], 0
        for level, (width, attend) in reversed(list(enumerate(zip(widths, attends, strict=True)))):
            for j in range(blocks + 1):
                self.res(f"output_blocks.{i}.0", c + skips.pop(), width)
                c = width
                if attend:
                    self.attend(f"output_blocks.{i}.1", c)
                if level and j == blocks:
                    self.add(f"output_blocks.{i}.{1 + attend}.conv", c, c, 3, 3)
                i += 1


def guided_state(width: int, multipliers: tuple[int, ...], blocks: int, attention: tuple[int, ...], size: int,
                 classes: int = 0) -> dict[str, Tensor]:  # fmt: skip
    """A random state dict of that network, 3 channels."""
    made, emb, widths = GuidedState(4 * width), 4 * width, [m * width for m in multipliers]
    attends = [size >> level in attention for level in range(len(widths))]
    made.add("time_embed.0", emb, width)
    made.add("time_embed.2", emb, emb)
    made.add("input_blocks.0.0", width, 3, 3, 3)
    if classes:
        made.tensors["label_emb.weight"] = torch.randn(classes, emb, generator=made.generator)
    skips, c = made.down(width, widths, blocks, attends), widths[-1]
    made.res("middle_block.0", c, c)
    made.attend("middle_block.1", c)
    made.res("middle_block.2", c, c)
    made.up(widths, blocks, attends, skips)
    made.add("out.0", widths[0])
    made.add("out.2", 3, widths[0], 3, 3)
    return made.tensors
