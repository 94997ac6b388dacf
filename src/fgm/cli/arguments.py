"""A command's own key=value settings, read and checked before anything heavy is imported."""

from typing import TypeVar

from fgm.utils.errors import UserError, hint

T = TypeVar("T")


def read_settings(arguments: list[str], known: dict[str, str]) -> dict[str, str]:
    """All settings of a command that takes no recipe; known holds their defaults.

    Raises:
        UserError: a word that is no key=value, or a key that is not known.
    """
    settings, unknown = split(arguments, known)
    if unknown:
        key, sign, _ = unknown[0].partition("=")
        raise UserError(
            f"there is no setting {key}; {hint(key, known)}" if sign else f"{key!r} is not of the form key=value"
        )
    return settings


def split(arguments: list[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """A command's own key=value settings, of which own holds the defaults, and the other arguments."""
    mine = [a for a in arguments if "=" in a and a.split("=")[0] in own]
    return own | dict(a.split("=", 1) for a in mine), [a for a in arguments if a not in mine]


def whole(settings: dict[str, str], key: str, least: int = 0) -> int:
    """A whole number of at least `least`."""
    value = settings[key]
    if not (value.isascii() and value.isdigit()) or int(value) < least:
        raise UserError(f"{key} = {value} must be a whole number from {least}")
    return int(value)


def whole_or(settings: dict[str, str], key: str, default: T, least: int = 0) -> int | T:
    """A whole number, or the default where none is given."""
    return whole(settings, key, least) if settings[key] else default


def choice(settings: dict[str, str], key: str, among: tuple[str, ...]) -> str:
    if settings[key] not in among:
        raise UserError(f"{key} = {settings[key]}: unknown; {hint(settings[key], among)}")
    return settings[key]


def yes(settings: dict[str, str], key: str) -> bool:
    return choice(settings, key, ("true", "false")) == "true"


def required(settings: dict[str, str], *keys: str) -> None:
    for key in keys:
        if not settings[key]:
            raise UserError(f"{key}= is missing: give {key}=...")


def parse_arguments(arguments: list[str], default: str = "digits_fgm") -> tuple[str, list[str]]:
    """Return the experiment, given as experiment=<name>, and the remaining overrides."""
    wrong = [a for a in arguments if "=" not in a]
    if wrong:
        raise UserError(f"{wrong[0]!r} is not of the form key=value")
    named = [a.split("=", 1)[1] for a in arguments if a.startswith("experiment=")]
    return (named or [default])[-1] or default, [a for a in arguments if not a.startswith("experiment=")]
