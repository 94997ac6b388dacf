"""Measure how far FGM's gradient is from the exact one, by how well the online network is fitted:
python experiments/identity/study.py [cases=gaussian,mixture] [key=value ...]

    gaussian      Gaussian data, its exact velocity as the teacher, an affine generator; v_theta is known
    mixture       eight Gaussians; v_theta is known, u is curved
    mixture_mlp   eight Gaussians, an MLP as the generator
    digits        a DiT, whose teacher is trained first if it is missing
    shapes        an MM-DiT with captions, from the guided teacher that ships with the package

seeds=3  turns=1,10,100  reference=3000  draws=16384     numbers of seeds, online updates and draws
network.width=64 outputs=outputs ...                     any other value of the cases' experiments

The generator stays fixed; the online network is trained on its samples, by the experiment's own loss, and compared
after each number of updates in `turns`. If v_theta has no closed form, an online network of `reference` updates stands
in for it. A row of runs.jsonl is a case, a seed and a number of updates, and is not measured again. Gradients are
float32 at any training precision: where v is near u, their difference would vanish.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import gradients
import results
import torch
from gradients import AffineGenerator, Comparison, Draws, Problem, Velocity
from torch import Generator, Tensor, nn

from fgm.cli.build import build_module
from fgm.cli.config import compose_experiment, digest
from fgm.cli.runs import device_of_rank, provenance, runs_file
from fgm.cli.train import train_teacher
from fgm.networks import VelocityModel
from fgm.training.distillation import Distillation
from fgm.training.ema import frozen_copy
from fgm.training.optim import learning_rate
from fgm.training.precision import precision_plugin
from fgm.utils.errors import UserError, entry, hint, resumable
from fgm.utils.records import append_row, read_rows

PARTS = results.PARTS
AFFINE_SCALE, AFFINE_SHIFT, AFFINE_SKEW = 0.3, 0.5, 0.3  # of the affine generator, in the data's standard deviations


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        experiment, overrides: whose networks, path, times and weighting are used.
        affine: whether the generator is an affine map, whose v_theta is known.
        updates: numbers of online updates after which the network is compared.
        reference: updates of the network that stands in for v_theta; if v_theta is known, one more number of updates.
        draws: of z, eps and t behind each gradient, in PARTS parts.
    """

    name: str
    experiment: str
    overrides: tuple[str, ...]
    affine: bool
    updates: tuple[int, ...]
    reference: int
    draws: int

    def config(self, seed: int, overrides: list[str]) -> dict[str, Any]:
        config = compose_experiment(self.experiment, [*self.overrides, *overrides])
        return config | {"seed": seed, "study": {"study": "identity", "case": self.name}}

    def digest(self, config: dict[str, Any]) -> str:
        """Return the digest of everything that a row's values depend on, except the seed."""
        sizes = {"turns": list(self.updates), "reference": self.reference, "draws": self.draws, "affine": self.affine}
        return digest({"config": config | {"seed": None}, "identity": sizes})


MANY, FEW = (1, 2, 3, 5, 10, 30, 100, 300, 1000), (1, 3, 10, 30, 100, 300)
PLAIN = ("method.weighting._target_=fgm.flow.losses.velocity_weight",)  # w = 1, as the paper writes the loss
GAUSSIAN = ("data.modes=1", "data.radius=1", "data.mode_std=0.7", *PLAIN)
CASES = {
    case.name: case
    for case in (
        Case("gaussian", "mixture_fgm", GAUSSIAN, True, MANY, 2000, 8192),
        Case("mixture", "mixture_fgm", PLAIN, True, MANY, 2000, 8192),
        Case("mixture_mlp", "mixture_fgm", (), False, MANY, 2000, 8192),
        Case("digits", "digits_fgm", (), False, FEW, 1000, 1024),
        Case("shapes", "shapes_fgm", (), False, (1, 3, 10, 30, 100), 300, 512),
    )
}
SETTINGS = {"cases": ",".join(CASES), "seeds": "3", "turns": "", "reference": "", "draws": ""}


def main(arguments: list[str]) -> None:
    resumable()
    own = SETTINGS | dict(a.split("=", 1) for a in arguments if a.partition("=")[0] in SETTINGS)
    overrides = [a for a in arguments if a.partition("=")[0] not in SETTINGS]
    cases = [resized(name, own) for name in dict.fromkeys(own["cases"].split(","))]
    runs = [(case, case.config(seed, overrides)) for seed in range(int(own["seeds"])) for case in cases]
    for case, config in runs:
        measure(case, config)
    page = runs_file(runs[0][1]).with_name("README.md")
    results.publish(page)
    print(f"{page}: table and identity.png are up to date")


def resized(name: str, own: dict[str, str]) -> Case:
    """Return a case with the sizes of the command line.

    Raises:
        UserError: the case is unknown, or its reference has too few updates.
    """
    if name not in CASES:
        raise UserError(f"cases = {name}: unknown; {hint(name, CASES)}")
    case = CASES[name]
    updates = tuple(sorted(map(int, own["turns"].split(",")))) if own["turns"] else case.updates
    case = replace(case, updates=updates, **{k: int(own[k]) for k in ("reference", "draws") if own[k]})
    if max(case.updates) >= case.reference:
        raise UserError(f"{name}: turns = {max(case.updates)} must be below reference = {case.reference}")
    return case


def measure(case: Case, config: dict[str, Any]) -> None:
    """Append the missing rows of one case and seed; all of them come from one training."""
    path, case_digest = runs_file(config), case.digest(config)
    known = {r["turns"] for r in read_rows(path) if (r["study_digest"], r["seed"]) == (case_digest, config["seed"])}
    wanted = [*case.updates, *([case.reference] if case.affine else []), None]  # None: v_theta or its stand-in
    missing = [updates for updates in wanted if updates not in known]
    print(f"{case.name}, seed {config['seed']}: {len(wanted)} points, {len(known)} of them done", flush=True)
    if not missing:
        return
    train_teacher(config["teacher"])
    began, points = time.perf_counter(), compare(config, case)
    shared = provenance(config) | {"study_digest": case_digest} | config["study"]
    shared |= {"images_seen": case.reference * config["training"]["batch_size"]}
    shared |= {"wall_s": round(time.perf_counter() - began, 1)}  # of all points of this case and seed
    for updates in missing:
        rows = [m.row() for m in results.measurements(points[updates], case)]
        append_row(path, shared | {"turns": updates, "results": rows})


def compare(config: dict[str, Any], case: Case) -> dict[int | None, results.Point]:
    """Train one online network and compare its gradients on the way with the reference gradient."""
    module: Any = build_module(config)
    module.to(device_of_rank(config["trainer"]["accelerator"])).on_fit_start()
    generator = affine_generator(module) if case.affine else module.generator
    teacher, path = module.velocities[0], module.path
    problem = Problem(generator.to(module.device), teacher, path, module.weighting)
    nets: dict[int | None, Velocity] = dict(fitted(module, problem, case, config["trainer"]["precision"]))
    parts = [draw(module, i, -(-case.draws // PARTS)) for i in range(PARTS)]
    if case.affine:
        reference = nets[None] = generator.velocity(path, differentiable=False)
    else:
        reference = nets[None] = nets.pop(case.reference)
    known = [gradients.fgm_gradients(problem, reference, draws) for draws in parts]
    exact = both = [pair.sum(0) for pair in known]
    if case.affine:
        v_theta = generator.velocity(path, differentiable=True)
        exact = [gradients.exact_gradient(problem, v_theta, draws) for draws in parts]
    noise, points = gradients.half_cosine(both), {}
    for updates, v in nets.items():
        pairs = known if v is reference else [gradients.fgm_gradients(problem, v, draws) for draws in parts]
        stacked = [torch.cat([pair, g[None]]) for pair, g in zip(pairs, exact, strict=True)]
        comparison = Comparison(gradients.products(stacked))
        points[updates] = results.Point(*gradients.fit(problem, v, reference, parts), comparison, noise)
    return points


def affine_generator(module: Distillation) -> AffineGenerator:
    """Narrower than the data, skewed and off its mean, by the seed, so that no symmetry makes a gradient vanish."""
    points = module.data.reference(10_000, module.rng("moments", 0))
    noise = module.rng("affine", 0)
    mean, dim = points.mean(0), points.shape[1]
    std = (points - mean).std()
    weight = torch.eye(dim) + AFFINE_SKEW * torch.randn(dim, dim, generator=noise)
    return AffineGenerator(AFFINE_SCALE * std * weight, mean + AFFINE_SHIFT * std * torch.randn(dim, generator=noise))


def fitted(module: Distillation, problem: Problem, case: Case, precision: str) -> Iterator[tuple[int, VelocityModel]]:
    """Yield frozen copies of the online network after case.updates and case.reference updates, on fresh samples."""
    config, online = module.config, module.velocities[1]
    optimizer = module.make_online_optimizer(module.online)
    rates = learning_rate(optimizer, case.reference, config.warmup_steps * module.online_steps, 0.5)
    mixed = precision_plugin(precision, module.device.type)
    for update in range(case.reference):
        stream = module.rng("online", update)
        z, condition = sample_z(module, config.batch_size, stream)
        with torch.no_grad():
            x_0 = problem.generator(z, condition)
        x_t, c, t = module.noised(x_0, module.online_times, stream)
        with mixed.train_step_context() if mixed else nullcontext():
            module.online_loss(x_t, c, t, condition)[0].backward()
        nn.utils.clip_grad_norm_(module.online.parameters(), config.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        if update + 1 in (*case.updates, case.reference):
            yield update + 1, frozen_copy(online)


def draw(module: Distillation, part: int, n: int) -> Draws:
    stream = module.rng("identity", part)
    z, condition = sample_z(module, n, stream)
    t = module.times.sample(n, stream)
    return Draws(z, condition, torch.randn(z.shape, generator=stream, device=module.device), t)


def sample_z(module: Distillation, n: int, stream: Generator) -> tuple[Tensor, Tensor | None]:
    z = torch.randn((n, *module.data.shape), generator=stream, device=module.device)
    return z, module.data.conditions(n, stream)


if __name__ == "__main__":
    entry(main, __doc__)
