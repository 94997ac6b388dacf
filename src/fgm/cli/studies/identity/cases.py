"""What `make study-identity` compares: recipes, overrides and sizes. Imports no torch.

    gaussian      Gaussian data, its exact velocity as the teacher, an affine generator; v_theta is known
    mixture       eight Gaussians likewise: v_theta is known, u is curved
    mixture_mlp   eight Gaussians, an MLP as the generator
    digits        a DiT, its teacher trained first if it is not there
    shapes        an MM-DiT with captions, from the guided teacher that comes with the suite

The online network is the recipe's, an MLP in the first three. Where v_theta is not known, the reference is an online
network of many more turns, whose learning rate decays over the second half of them.
"""

from dataclasses import dataclass, replace
from typing import Any

from fgm.cli.arguments import choice, whole, whole_or
from fgm.cli.config import digest, read_recipe
from fgm.utils.errors import UserError, hint

STUDY = "identity"
PARTS = 8  # of the draws, see comparison.py


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        recipe, overrides: whose networks, path, times and weighting are used.
        affine: whether the generator is an affine map, whose v_theta is known.
        turns: of the online network, after which it is measured.
        reference: turns of the network that stands for v_theta; where that is known, one more that is measured.
        draws: of z, eps and t behind each gradient, in PARTS parts.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    affine: bool
    turns: tuple[int, ...]
    reference: int
    draws: int

    @property
    def measured(self) -> list[int | None]:
        """After how many turns there is a row; None for v_theta, or the network that stands for it."""
        return [*self.turns, *([self.reference] if self.affine else []), None]

    def config(self, seed: int, overrides: list[str]) -> dict[str, Any]:
        """Of one seed, recorded with the study."""
        config = read_recipe(self.recipe, [*self.overrides, *overrides])
        return config | {"seed": seed, "study": {"study": STUDY, "case": self.name}}

    def digest(self, config: dict[str, Any]) -> str:
        """Of all that a row's values depend on but the seed."""
        sizes = {"turns": list(self.turns), "reference": self.reference, "draws": self.draws, "affine": self.affine}
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


def chosen(own: dict[str, str]) -> list[Case]:
    """The cases that are asked for, with the sizes that are.

    Raises:
        UserError: a case is unknown, or a size is none.
    """
    names = own["cases"].split(",")
    for name in names:
        choice({"cases": name}, "cases", tuple(CASES))
    return [resized(CASES[name], own) for name in dict.fromkeys(names)]


def resized(case: Case, own: dict[str, str]) -> Case:
    words = own["turns"].split(",") if own["turns"] else []
    turns = tuple(sorted({whole({"turns": word}, "turns", 1) for word in words})) or case.turns
    reference, draws = whole_or(own, "reference", case.reference, 1), whole_or(own, "draws", case.draws, 2 * PARTS)
    if max(turns) >= reference:
        raise UserError(f"{case.name}: turns = {max(turns)} must be below reference = {reference}")
    return replace(case, turns=turns, reference=reference, draws=draws)


def require_recipeless(arguments: list[str]) -> None:
    """
    Raises:
        UserError: a recipe is asked for by name.
    """
    for argument in arguments:
        if argument.startswith("experiment="):
            raise UserError(f"{argument}: give cases=, which name their recipes; {hint('', CASES)}")
