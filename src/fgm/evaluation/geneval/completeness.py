"""A score over what happens to be there looks like any other score, so an incomplete set is refused."""

from collections import Counter
from collections.abc import Iterable, Sequence

from fgm.utils.errors import UserError

SHOWN = 3


def require_complete(found: Sequence[tuple[int, int]], prompts: int, per_prompt: int, where: str) -> None:
    """Refuse unless found holds every (prompt's index, sample's ordinal) once and no other one."""
    whole = f"it should hold {prompts} prompts with {per_prompt} samples each"
    absent = sorted(set(range(prompts)) - {index for index, _ in found})
    if absent:
        raise UserError(
            f"{where}: {len(absent)} of {prompts} prompts are missing: {few(f'{i:05d}' for i in absent)}; {whole}"
        )
    wanted = {(index, ordinal) for index in range(prompts) for ordinal in range(per_prompt)}
    lacking = sorted(wanted - set(found))
    if lacking:
        raise UserError(f"{where}: {len(lacking)} of {len(wanted)} samples are missing: {names(lacking)}; {whole}")
    foreign = sorted(set(found) - wanted)
    if foreign:
        raise UserError(f"{where}: {len(foreign)} samples are too many: {names(foreign)}; {whole}")
    doubles = sorted(sample for sample, times in Counter(found).items() if times > 1)
    if doubles:
        raise UserError(f"{where}: {len(doubles)} samples are there twice: {names(doubles)}; keep one of each")


def names(samples: Iterable[tuple[int, int]]) -> str:
    return few(f"{index:05d}/samples/{ordinal:05d}" for index, ordinal in samples)


def few(items: Iterable[str]) -> str:
    """The first few, and how many more."""
    shown = list(items)
    more = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {more} more" if more > 0 else "")
