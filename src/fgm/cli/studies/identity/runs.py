"""One case and seed: the gradients of online networks on their way to v_theta, beside the gradient that is meant.

Gradients are computed in float32, whatever the recipe trains in: where v is near u, their difference would be lost.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fgm.cli.build import build_module
from fgm.cli.evaluators import device_of_rank
from fgm.cli.studies.identity.affine import affine_start
from fgm.cli.studies.identity.cases import PARTS, Case
from fgm.cli.studies.identity.comparison import Comparison, noise, products
from fgm.cli.studies.identity.gradients import Draws, Problem, VelocityOf, fgm_gradients, fit, true_gradient
from fgm.cli.studies.identity.online import draws_of, fitted


@dataclass(frozen=True)
class Result:
    """
    Attributes:
        turns: of the online network; None for v_theta itself.
        fit_error, covered: see gradients.fit.
        noise: cosine of the reference network's gradients on two halves of the draws.
    """

    turns: int | None
    fit_error: float
    covered: float
    comparison: Comparison
    noise: float


def results(config: dict[str, Any], case: Case) -> list[Result]:
    """All points of one case and seed."""
    module: Any = build_module(config)
    module.to(device_of_rank(config["trainer"]["accelerator"])).on_fit_start()
    generator = affine_start(module.setting) if case.affine else module.generator
    problem = Problem(
        generator.to(module.device), module.velocities()[0], module.setting.path, module.objective.weighting
    )
    nets: dict[int | None, VelocityOf] = dict(fitted(module, problem, case, config["trainer"]["precision"]))
    parts = [draws_of(module, i, -(-case.draws // PARTS)) for i in range(PARTS)]
    if case.affine:
        nets[None] = generator.law(problem.path, live=False)
        truths = [true_gradient(problem, generator.law(problem.path, live=True), draws) for draws in parts]
        return compared(problem, nets, parts, truths)
    nets[None] = nets.pop(case.reference)
    return compared(problem, nets, parts, None)


def compared(
    problem: Problem, nets: dict[int | None, VelocityOf], parts: list[Draws], truths: list[Tensor] | None
) -> list[Result]:
    """Each net's gradients beside the truths, or where there are none beside L_1 + L_2 of nets[None]."""
    reference, found = nets[None], []
    known = [fgm_gradients(problem, reference, draws) for draws in parts]
    both = [pair.sum(0) for pair in known]
    told, truths = noise(both), truths or both
    for turns, v in nets.items():
        pairs = known if v is reference else [fgm_gradients(problem, v, draws) for draws in parts]
        rows = [torch.cat([pair, g[None]]) for pair, g in zip(pairs, truths, strict=True)]
        found.append(Result(turns, *fit(problem, v, reference, parts), Comparison(products(rows)), told))
    return found
