"""Published teachers: where each comes from and what its authors report, for whoever holds the file.

FIDs are the authors', 50,000 samples against the training split, and none was measured here. Hashes are not known here:
give yours as teacher.sha256, and a run refuses any other file.
"""

from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from fgm.errors import Refusal


@dataclass(frozen=True)
class Card:
    """Of one file. fid at nfe network calls; None where no figure was found for it."""

    source: str
    architecture: str
    fid: float | None
    nfe: int | None
    reported: str


EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
EDM_TABLE = "EDM's README"
CFM = "https://github.com/atong01/conditional-flow-matching/releases"
CARDS = {
    "edm-cifar10-32x32-uncond-vp.pkl": Card(EDM, "cifar10_ddpmpp", 1.97, 35, EDM_TABLE),
    "edm-cifar10-32x32-cond-vp.pkl": Card(EDM, "cifar10_ddpmpp", 1.79, 35, EDM_TABLE),
    "edm-cifar10-32x32-uncond-ve.pkl": Card(EDM, "cifar10_ncsnpp", None, None, ""),
    "edm-imagenet-64x64-cond-adm.pkl": Card(EDM, "imagenet64_adm", 1.36, None, "SiD, as its teacher"),
    "cfm_cifar10_weights_step_400000.pt": Card(CFM, "torchcfm, I-CFM", 3.57, 100, "arXiv 2509.22459, table 2"),
}


def require_checkpoint(checkpoint: str, sha256: str | None) -> Path:
    """The file, where it is there and hashes to sha256 or what begins so.

    Raises:
        Refusal: it does not; a published file's card says where to get it.
    """
    file = Path(checkpoint)
    if not file.is_file():
        card = CARDS.get(file.name)
        where = f"; it comes from {card.source}, nothing is downloaded" if card else ""
        raise Refusal(f"there is no checkpoint {file}{where}")
    if sha256:
        with file.open("rb") as stream:
            found = file_digest(stream, "sha256").hexdigest()
        if not found.startswith(sha256.lower()):
            raise Refusal(f"{file} has sha256 {found[:16]}..., and {sha256[:16]} is asked for: it is another file")
    return file
