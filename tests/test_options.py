"""Options of memory and speed: each gives the numbers of doing without, survives checkpoints, or says what it lacks."""

import shutil
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adversaries import GAN
from killed_runs import dying
from tiny_runs import light
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import SCHEDULE, network, place, run, same_bits, setting, weights, whole_and_resumed

from fgm.cli.config import digest, read_recipe
from fgm.training import optimizers
from fgm.training.callbacks import blocks_to_compile, compile_blocks
from fgm.training.checkpointing import LAST
from fgm.training.distillation import Distillation
from fgm.training.ema import brought, frozen_copy, update_ema
from fgm.training.optim import adam, adamw
from fgm.training.trainer import fit
from fgm.utils.errors import UserError

PLAIN = partial(adam, lr=1e-3)


def distillation(optimizer: Any = PLAIN, **changes: Any) -> Distillation:
    schedule = replace(SCHEDULE, **changes)
    s = setting(net=network(2), teacher=network(1), schedule=schedule, optimizer=optimizer)
    return Distillation(s, t_star=0.9)


@pytest.mark.parametrize("kind", [adam, adamw])
def test_a_fused_optimizer_is_the_plain_one_to_rounding(kind: Any, tmp_path: Path) -> None:
    plain, fused = (
        weights(run(distillation(partial(kind, lr=1e-3, kernel=k)), tmp_path / k)) for k in ("auto", "fused")
    )
    assert_close(fused, plain, rtol=1e-4, atol=1e-6)


EIGHT_BIT = pytest.param(
    "eight_bit", marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
)


@pytest.mark.parametrize("kernel", ["fused", EIGHT_BIT])
def test_its_state_survives_to_the_bit(kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = partial(adam, lr=1e-3, beta_1=0.5, kernel=kernel)
    assert same_bits(*whole_and_resumed(lambda: distillation(optimizer), tmp_path, monkeypatch))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_package_is_one_line_with_its_remedy_and_no_torch() -> None:
    line = light("train", ["optimizer.kernel=eight_bit"])
    assert "optimizer.kernel = eight_bit needs bitsandbytes" in line and "pip install -e '.[eight-bit]'" in line
    with pytest.raises(UserError, match="needs bitsandbytes"):
        adam(network(), lr=1.0, kernel="eight_bit")


@pytest.mark.parametrize("kind, name", [(adam, "Adam8bit"), (adamw, "AdamW8bit")])
def test_eight_bits_are_asked_of_bitsandbytes(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    classes = {name: lambda parameters, **settings: asked.append(settings)}
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(**classes)))  # type: ignore[arg-type]
    monkeypatch.setattr(optimizers, "require_installed", lambda *_: None)
    kind(network(), lr=0.5, kernel="eight_bit")
    plain = kind(network(), lr=0.5).defaults
    assert asked and all(plain[key] == value for key, value in asked[0].items())


def test_an_option_at_rest_changes_no_digest() -> None:
    plain = read_recipe("sd3_fgm", [])
    rest = ["optimizer.kernel=auto", "training.micro_batches=1", "training.ema_device=same", "training.compile=false"]
    assert digest(read_recipe("sd3_fgm", rest)) == digest(plain)
    older = plain | {"optimizer": {key: value for key, value in plain["optimizer"].items() if key != "kernel"}}
    assert "kernel" in plain["optimizer"] and digest(older) == digest(plain)
    for used in ("optimizer.kernel=fused", "training.micro_batches=2", "training.compile=true"):
        assert digest(read_recipe("sd3_fgm", [used])) != digest(plain)


def test_an_average_in_the_hosts_memory_has_the_numbers_of_one_beside_the_weights(tmp_path: Path) -> None:
    """Of whole runs; its names in a checkpoint are the same, so that either goes on from the other."""
    beside, apart = (run(distillation(ema_device=where), tmp_path / where) for where in ("same", "cpu"))
    states = weights(beside), weights(apart)
    assert list(states[0]) == list(states[1]) and same_bits(beside, apart)
    assert not any(
        torch.equal(states[0][n], states[0][n.replace("ema", "generator", 1)]) for n in states[0] if "ema" in n
    )


class Elsewhere(Tensor):
    """A tensor that says that it lies on another device."""

    device = torch.device("cuda")


def test_it_is_formed_tensor_by_tensor_where_the_devices_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    ema, net = frozen_copy(network(0)), network(1)
    expected = frozen_copy(ema)
    update_ema(expected, net, 0.8)
    monkeypatch.setattr(torch, "_foreach_lerp_", None)
    far = [p.detach().as_subclass(Elsewhere) for p in net.parameters()]
    monkeypatch.setattr(net, "parameters", lambda: iter(far))
    monkeypatch.setattr(Elsewhere, "to", lambda x, device: x.as_subclass(Tensor), raising=False)
    update_ema(ema, net, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), expected.parameters(), strict=True))


def test_a_module_that_moves_leaves_it_on_the_host_and_in_its_place() -> None:
    module, names = distillation(ema_device="cpu"), list(distillation().state_dict())
    moves: list[Any] = []

    class Moved(Tensor):
        def cpu(self) -> Tensor:  # type: ignore[override]
            moves.append(self.shape)
            return self.as_subclass(Tensor)

    module._apply(lambda x: x.double().as_subclass(Moved) if x.is_floating_point() else x)
    averaged = [*module.ema.parameters(), *module.ema.buffers()]
    assert list(module.state_dict()) == names and len(moves) == len(averaged)
    assert all(p.dtype == torch.float64 and type(p.data) is Tensor for p in averaged)
    assert {n for n in names if n.startswith("ema.")} <= set(module._ddp_params_and_buffers_to_ignore)
    with brought(module.ema, torch.device("cpu")):
        assert all(p.device.type == "cpu" for p in module.ema.parameters())


def compiled_run(module: Distillation, folder: Path, compile: bool) -> Distillation:
    fit(module, place(folder))
    return module


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a compiler")
def test_compiled_blocks_train_alike_and_go_on_from_plain_checkpoints_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    short = {"cycles": 2, "save_every": 2}
    compiled, plain = (compiled_run(distillation(**short), tmp_path / str(how), how) for how in (True, False))
    assert counters["stats"]["unique_graphs"] >= 2  # weights with gradients, and without
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-6)
    saved = [list(torch.load(tmp_path / str(how) / LAST, weights_only=True)["state_dict"]) for how in (True, False)]
    assert saved[0] == saved[1] and not any("_orig_mod" in name for name in saved[0])
    for first, then in ((True, False), (False, True)):
        killed, folder = distillation(cycles=3, save_every=2), tmp_path / f"{first} first"
        with dying(killed, 2, monkeypatch):
            compiled_run(killed, folder, first)
        assert int(compiled_run(distillation(cycles=3), folder, then).cycle) == 3


def test_what_cannot_be_compiled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Linear has no blocks to compile"):
        compile_blocks([torch.nn.Linear(2, 2)])
    assert len(blocks_to_compile(network())) == len(network().blocks)
    s = setting(net=network(2), teacher=network(1))
    watched = Distillation(s, t_star=0.9, adversary=GAN)
    with pytest.raises(UserError, match="the discriminator reads features by hooks"):
        compiled_run(watched, tmp_path, True)
