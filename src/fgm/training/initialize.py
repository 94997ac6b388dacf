"""Where a network's weights come from before a distillation: a named choice.

teacher   a copy of the teacher's
fit       a fresh network, regressed onto the teacher's velocity around the teacher's own ODE samples; for a teacher without
          weights (an exact velocity) or of another architecture, still without data
random    a fresh network

If a network's weights are constrained (EDM2's rows), the copy satisfies the constraint from the start.

From there a one-step generator can first be regressed onto the teacher's ODE, E|g(z) - x_0(z)|^2 with x_0(z) where the
ODE takes the noise z (the pairs of rectified flow, arXiv 2209.03003, and of DMD's regression loss, arXiv 2311.18828).
At t* near 1 the teacher's own x_0-prediction sends every z near the data's mean, and a map that unfolds from one point
can fold over itself; the ODE's map is invertible, and says which z belongs where.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fgm.evaluation.sampling import conditioning, draw_samples, ode_sampler
from fgm.flow.times import Uniform
from fgm.networks import VelocityModel
from fgm.networks.generator import FewStepGenerator
from fgm.networks.guidance import unwrap_guidance
from fgm.networks.lora import LoRA
from fgm.training.optim import constrain, learning_rate
from fgm.utils.random import keyed_generator

Init = Literal["teacher", "fit", "random"]
MakeNetwork = Callable[[], VelocityModel]

FIT_ITERATIONS, FIT_BATCH, FIT_RATE = 1000, 256, 2e-3
FIT_POOL, FIT_STEPS = 10_000, 50
ODE_ITERATIONS = 2000


def initialize(
    init: Init, module: Any, teacher: VelocityModel | None, network: MakeNetwork | None, fitted: Any = None
) -> VelocityModel:
    """Return a trainable network.

    Args:
        init: see above.
        module: the training, for its data, path and seed.
        teacher: for "teacher" and "fit".
        network: makes a fresh network, for "fit" and "random".
        fitted: a network that was fitted before, to be copied for "fit".

    Raises:
        ValueError: the teacher has no weights to copy, or init is unknown.
    """
    if init == "teacher":
        net = deepcopy(teacher_network(teacher))
    elif init in ("fit", "random"):
        if network is None:
            raise ValueError(f"init = {init!r} needs a network")
        net = deepcopy(fitted or fit(module, teacher, network)) if init == "fit" else network()
    else:
        raise ValueError(f"init = {init!r} is none of teacher, fit, random")
    constrain(net.requires_grad_(True))
    return net


def initialize_pair(
    module: Any, teacher: VelocityModel, network: MakeNetwork | None, generator_init: Init, online_init: Init,
    adapters: LoRA | None,
) -> tuple[VelocityModel, VelocityModel]:  # fmt: skip
    """Return the generator's network and the online one; both "fit" share one fit.

    Raises:
        ValueError: adapters are to start from anything but the teacher.
    """
    if adapters is None:
        fitted = fit(module, teacher, network) if network and "fit" in (generator_init, online_init) else None
        generator = initialize(generator_init, module, teacher, network, fitted)
        return generator, initialize(online_init, module, teacher, network, fitted)
    if (generator_init, online_init) != ("teacher", "teacher"):
        raise ValueError("adapters change the teacher's weights: generator_init and online_init must be teacher")
    generator, online = adapters.networks(teacher_network(teacher), module.seed, ("generator", "online"))
    return generator, online


def teacher_network(teacher: VelocityModel | None) -> VelocityModel:
    net = teacher and unwrap_guidance(teacher)
    if net is None or not any(True for _ in net.parameters()):
        raise ValueError(f"{type(net).__name__} has no weights to copy: choose fit or random")
    return net


def fit(module: Any, teacher: VelocityModel | None, network: MakeNetwork) -> VelocityModel:
    """Return a fresh network after FIT_ITERATIONS of regression onto the teacher, on the path to its own samples."""
    assert teacher is not None
    net, data = network(), module.data
    source = ode_sampler(teacher, module.path, FIT_STEPS)
    asked = conditioning(data, None, module.seed).conditions
    pool, conditions = draw_samples(source, module.seed, FIT_POOL, data.shape, asked, torch.device("cpu"))
    optimizer = torch.optim.AdamW(net.parameters(), FIT_RATE)
    schedule = learning_rate(optimizer, FIT_ITERATIONS, 50, 1.0)
    for i in range(FIT_ITERATIONS):
        rng = keyed_generator(module.seed, "fit", 0, index=i)
        chosen = torch.randint(len(pool), (FIT_BATCH,), generator=rng)
        condition = None if conditions is None else conditions[chosen]
        x_t, _, t = module.noised(pool[chosen], Uniform(), rng)
        with torch.no_grad():
            u = teacher(x_t, t, condition)
        loss = mse_loss(net(x_t, t, condition), u)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def regress_on_ode(module: Any, teacher: VelocityModel, generator: FewStepGenerator, n: int) -> None:
    """Regress a one-step generator onto n pairs of noise and sample of the teacher's ODE, FIT_STEPS calls each.

    Raises:
        ValueError: the generator has several steps.
    """
    if not n:
        return
    if generator.nfe > 1:
        raise ValueError(f"ode_pairs = {n} is for one step, and steps = {generator.nfe}")
    ode, rng = ode_sampler(teacher, module.path, FIT_STEPS).model, keyed_generator(module.seed, "ode", index=0)
    z, conditions = torch.randn((n, *module.data.shape), generator=rng), module.data.conditions(n, rng)

    def rows(chosen: Tensor) -> Tensor | None:
        return None if conditions is None else conditions[chosen]

    with torch.no_grad():
        x_0 = torch.cat([ode(z[part], rows(part)) for part in torch.arange(n).split(1000)])
    optimizer = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], FIT_RATE, betas=(0.9, 0.99))
    schedule = learning_rate(optimizer, ODE_ITERATIONS, 50, 1.0)
    for _ in range(ODE_ITERATIONS):
        chosen = torch.randint(n, (FIT_BATCH,), generator=rng)
        optimizer.zero_grad()
        with generator.adapter_active():
            mse_loss(generator(z[chosen], rows(chosen)), x_0[chosen]).backward()
        optimizer.step()
        schedule.step()
    constrain(generator.net)
    generator.zero_grad()
