"""Optimizers, the learning rate, the average, and compiled blocks: each option has the numbers of the plain run."""

import math
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial, partialmethod
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adversaries import GAN
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import (
    CONFIG,
    dying,
    last_weights,
    network,
    pieces,
    run,
    same_bits,
    teacher_training,
    weights,
    whole_and_resumed,
)

from fgm.cli.config import compose_experiment, digest
from fgm.flow.times import Annealed, Uniform
from fgm.networks.mlp import VelocityMLP
from fgm.training import optim
from fgm.training.callbacks import CompileBlocks, blocks_to_compile
from fgm.training.distillation import Distillation
from fgm.training.ema import brought, ema_decay, frozen_copy, update_ema
from fgm.training.optim import CombinedOptimizer, adam, adamw, learning_rate, muon
from fgm.utils.errors import UserError


def distillation(optimizer: Any = None, discriminator: Any = None, **changes: Any) -> Distillation:
    s = pieces(teacher=network(1), config=replace(CONFIG, **changes), optimizer=optimizer or partial(adam, lr=1e-3))
    return Distillation(**s, t_star=0.9, discriminator=discriminator)


def test_learning_rate_grows_is_constant_and_falls_to_zero() -> None:
    optimizer = adamw(network(), lr=1.0)
    schedule, rates = learning_rate(optimizer, updates=10, warmup=1, decay=0.5), []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 1.0), ("linear", 0.25), ("cosine", 0.5 - 0.125**0.5)])
def test_schedules_agree_where_the_rate_grows_and_differ_in_how_it_falls(schedule: Any, middle: float) -> None:
    """With a quarter of the decay remaining a cosine is at (1 - cos(pi / 4)) / 2."""
    optimizer = adamw(network(), lr=2.0)
    factors = learning_rate(optimizer, 100, 3, 0.4, schedule).lr_lambdas[0]
    assert [factors(i) for i in (0, 1, 2, 3, 60)] == [0.25, 0.5, 0.75, 1, 1]
    assert factors(90) == pytest.approx(middle) and factors(100) == (schedule == "constant")


@pytest.mark.parametrize("optimizer", [partial(adam, lr=0.5), partial(adamw, lr=0.5)])
def test_online_network_has_its_ratio_of_the_generators_rate(optimizer: Any) -> None:
    s = pieces(teacher=network(1), config=replace(CONFIG, warmup_steps=0), optimizer=optimizer)
    generator, online = Distillation(**s, t_star=0.9, online_lr_ratio=0.25).configure_optimizers()
    assert {group["lr"] for group in generator["optimizer"].param_groups} == {0.5}
    assert {group["lr"] for group in online["optimizer"].param_groups} == {0.125}


def test_muon_moves_the_matrices_of_the_blocks_and_its_state_roundtrip_is_bit_exact() -> None:
    def stepped(net: VelocityMLP, optimizer: Any, times: int) -> list[Tensor]:
        for _ in range(times):
            optimizer.zero_grad()
            net(torch.ones(4, 2), torch.full((4,), 0.5)).square().sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    net, twin = network(), network()
    optimizer = muon(net, lr=0.01)
    assert isinstance(optimizer, CombinedOptimizer)
    matrices = [p for p in net.blocks.parameters() if p.ndim == 2]
    assert {id(p) for p in optimizer.parts[0].param_groups[0]["params"]} == {id(p) for p in matrices}
    stepped(net, optimizer, 3)
    twin.load_state_dict(net.state_dict())
    restored = muon(twin, lr=0.5)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    for a, b in zip(stepped(net, optimizer, 2), stepped(twin, restored, 2), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [adam, adamw])
def test_fused_kernel_is_the_plain_one_to_rounding(kind: Any, tmp_path: Path) -> None:
    def without_fusion(net: Any) -> Any:
        optimizer = kind(net, lr=1e-3)
        assert optimizer.param_groups[0]["fused"]  # auto on a CPU
        optimizer.param_groups[0]["fused"] = None
        return optimizer

    plain, fused = (
        weights(run(distillation(make), tmp_path / name))
        for name, make in (("plain", without_fusion), ("fused", partial(kind, lr=1e-3)))
    )
    assert_close(fused, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
def test_resume_with_eight_bit_moments_is_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = partial(adam, lr=1e-3, beta_1=0.5, kernel="eight_bit")
    assert same_bits(*whole_and_resumed(lambda: distillation(optimizer), tmp_path, monkeypatch))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_missing_bitsandbytes_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"optimizer.kernel = eight_bit needs bitsandbytes.*\[eight-bit\]"):
        adam(network(), lr=1.0, kernel="eight_bit")


@pytest.mark.parametrize("kind, name", [(adam, "Adam8bit"), (adamw, "AdamW8bit")])
def test_eight_bit_kernel_is_bitsandbytes_with_the_same_settings(
    kind: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    classes = {name: lambda parameters, **settings: calls.append(settings)}
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(**classes)))  # type: ignore[arg-type]
    monkeypatch.setattr(optim, "require_installed", lambda *_: None)
    kind(network(), lr=0.5, kernel="eight_bit")
    plain = kind(network(), lr=0.5).defaults
    assert calls and all(plain[key] == value for key, value in calls[0].items())


def test_default_options_of_memory_and_speed_change_no_digest() -> None:
    plain = compose_experiment("sd3_fgm", [])
    defaults = [
        "optimizer.kernel=auto",
        "training.micro_batches=1",
        "training.ema_device=same",
        "training.compile=false",
    ]
    assert digest(compose_experiment("sd3_fgm", defaults)) == digest(plain)
    for used in ("optimizer.kernel=fused", "training.micro_batches=2", "training.compile=true"):
        assert digest(compose_experiment("sd3_fgm", [used])) != digest(plain)


# the average


def test_ema_after_n_steps_is_the_geometric_sum() -> None:
    ema, net = frozen_copy(network(0)), network(1)
    start = [p.clone() for p in ema.parameters()]
    for _ in range(5):
        update_ema(ema, net, 0.8)
    for a, b, c in zip(start, net.parameters(), ema.parameters(), strict=True):
        assert_close(c, 0.8**5 * a + (1 - 0.8**5) * b)


@pytest.mark.parametrize("half_life", [0.02, 0.1, 0.5])
def test_ema_of_any_length_is_the_power_function_of_edm2(half_life: float) -> None:
    """The average of w_n = n is n (gamma + 1) / (gamma + 2) up to the sum's distance from its integral, order 1 / n."""
    gamma = math.log(2) / half_life - 1
    for steps in (2_000, 4_000):
        ema = 0.0
        for n in range(1, steps + 1):
            decay = ema_decay(half_life, 64 * n, 64)
            ema = decay * ema + (1 - decay) * n
        expected = steps * (gamma + 1) / (gamma + 2)
        assert ema == pytest.approx(expected, rel=(gamma + 1) / steps)


def test_ema_decay_halves_after_the_half_life_and_no_half_life_keeps_the_weights_alone() -> None:
    assert ema_decay(math.inf, 10, 7, max_half_life=70) ** 10 == pytest.approx(0.5)
    assert ema_decay(0.05, 1_000_000, 256, 500_000) == ema_decay(math.inf, 1, 256, 50_000)
    assert ema_decay(0.0, 10, 7) == 0


def test_further_averages_are_those_of_trainings_with_their_half_life_and_change_no_number(tmp_path: Path) -> None:
    plain, wide, both = (
        run(distillation(**options), tmp_path / str(i))
        for i, options in enumerate(({}, {"ema_half_life": 2.0}, {"ema_extra": (2.0,), "ema_device": "cpu"}))
    )
    extra, kept = both.extra_emas[0].state_dict(), weights(both)
    assert all(torch.equal(extra[name], tensor) for name, tensor in wide.ema.state_dict().items())
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(plain).items())
    assert [s.weights for s in both.samplers()] == ["ema", "raw", "ema_2", "teacher", "teacher"]
    assert [s.weights for s in teacher_training(config=both.config).samplers()] == 2 * ["teacher"] + ["ema_2"]


def test_times_are_drawn_from_the_density_of_the_step(tmp_path: Path) -> None:
    """An annealed density that has reached its end draws every update's times there, low ones before."""
    seen: list[tuple[float, float]] = []

    class Watched(Distillation):
        def generator_loss(self, u: Tensor, v: Tensor, c: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, condition: Any):
            seen.append((float(t.min()), float(t.max())))
            return super().generator_loss(u, v, c, x_0, x_t, t, condition)

    times = Annealed(Uniform(0.0, 0.5), Uniform(0.5, 1.0), until=0.5)
    run(Watched(**pieces(teacher=network(1), times=times), t_star=0.9), tmp_path)
    assert len(seen) == CONFIG.max_steps and seen[0][1] < 0.5
    assert all(low > 0.5 for low, _ in seen[CONFIG.max_steps // 2 :])
    assert any(low < 0.5 < high for low, high in seen[: CONFIG.max_steps // 2])


def test_longer_training_has_the_averages_of_a_shorter_one_on_its_way(tmp_path: Path) -> None:
    short = run(distillation(max_steps=4, lr_decay_fraction=0.0), tmp_path / "short")
    long = distillation(max_steps=8, lr_decay_fraction=0.0, keep_every_n_steps=4)
    run(long, tmp_path / "long")
    state = torch.load(tmp_path / "long" / "checkpoints" / "00000004.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(short).items())


def test_ema_on_the_host_has_the_numbers_of_one_on_the_device(tmp_path: Path) -> None:
    """Its names in a checkpoint are the same too, so that either resumes from the other."""
    same, host = (run(distillation(ema_device=where), tmp_path / where) for where in ("same", "cpu"))
    assert same_bits(same, host)
    averaged = {name: w for name, w in weights(same).items() if name.startswith("ema.")}
    assert not any(torch.equal(w, weights(same)[n.replace("ema", "generator", 1)]) for n, w in averaged.items())


class Elsewhere(Tensor):
    """A tensor that claims to be on another device."""

    device = torch.device("cuda")


def test_ema_of_another_device_is_formed_tensor_by_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    ema, net = frozen_copy(network(0)), network(1)
    expected = frozen_copy(ema)
    update_ema(expected, net, 0.8)
    monkeypatch.setattr(torch, "_foreach_lerp_", None)
    far = [p.detach().as_subclass(Elsewhere) for p in net.parameters()]
    monkeypatch.setattr(net, "parameters", lambda: iter(far))
    monkeypatch.setattr(Elsewhere, "to", lambda x, device: x.as_subclass(Tensor), raising=False)
    update_ema(ema, net, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), expected.parameters(), strict=True))


def test_moving_a_module_leaves_its_ema_on_the_host() -> None:
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
    with brought([module.ema], torch.device("cpu")):
        assert all(p.device.type == "cpu" for p in module.ema.parameters())


# compiled blocks


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_blocks_train_alike_and_share_checkpoints_with_plain_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs are captured and differentiated as always, and run without generated code, which is torch's affair."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    counters.clear()
    compiled, plain = (run(distillation(max_steps=2, compile=how), tmp_path / str(how)) for how in (True, False))
    assert counters["stats"]["unique_graphs"] >= 2  # weights with gradients, and without
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-6)
    saved = [list(last_weights(tmp_path / str(how))) for how in (True, False)]
    assert saved[0] == saved[1] and not any("_orig_mod" in name for name in saved[0])
    for first in (True, False):
        folder, killed = tmp_path / f"{first} first", distillation(max_steps=3, save_every_n_steps=2, compile=first)
        with dying(killed, 2, monkeypatch):
            run(killed, folder)
        assert int(run(distillation(max_steps=3, compile=not first), folder).step) == 3


def test_networks_without_blocks_and_discriminators_are_not_compiled(tmp_path: Path) -> None:
    assert len(blocks_to_compile(network())) == len(network().blocks)
    linear: Any = SimpleNamespace(networks=lambda: [torch.nn.Linear(2, 2)])
    with pytest.raises(UserError, match="Linear has no blocks to compile"):
        CompileBlocks().on_fit_start(None, linear)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the discriminator reads features by hooks"):
        run(distillation(discriminator=GAN, compile=True), tmp_path)
