"""Weights that the user holds: found by path, checked by hash, never fetched.

torch.hub's file names end in -<first eight hex digits of the sha256>; where a name has such an end, the file must match
it. This module needs the standard library alone, so that a missing file is said within milliseconds.
"""

import os
import re
from pathlib import Path

from fgm.errors import Refusal
from fgm.files import sha256_of

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def checkpoints() -> Path:
    """Where torch.hub keeps files: $TORCH_HOME/hub/checkpoints."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


def inception_weights(path: str | None = None) -> Path:
    """The file of Inception's weights: path, or the published name in torch.hub's folder.

    Raises:
        Refusal: there is none, or it is not what its name says.
    """
    file = Path(path) if path else checkpoints() / INCEPTION
    if not file.is_file():
        raise Refusal(
            f"no Inception weights at {file}: put {INCEPTION} (torch-fidelity's, release v0.2.0) there or give "
            "evaluation.panel.extractor.weights=<path>; nothing is downloaded. Without them: SmallClassifier for "
            "digits and Fashion-MNIST, Dinov2 from a local directory, RandomConvolutions for smoke tests (their "
            "distance is called fd)"
        )
    checked_hash(file)
    return file


def checked_hash(file: Path) -> str:
    """The first eight hex digits of the file's sha256.

    Raises:
        Refusal: the file's name ends in another hash.
    """
    found = sha256_of(file)
    named = HASH_IN_NAME.search(file.name)
    if named and not found.startswith(named[1]):
        raise Refusal(
            f"{file} has sha256 {found[:8]}..., and its name promises {named[1]}: "
            "it is damaged or another file; fetch it again, or give it a name of its own"
        )
    return found[:8]
