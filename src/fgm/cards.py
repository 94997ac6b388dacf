"""Published teachers: where each comes from and what its authors report, for whoever holds the file.

FIDs are the authors', 50,000 samples against the training split, and none was measured here; None where none is known.
Hashes are not known here: give yours as teacher.sha256 (of a directory, teacher.fingerprint), and a run refuses any
other file.
"""

from dataclasses import dataclass
from pathlib import Path

from fgm.errors import Refusal
from fgm.files import sha256_of


@dataclass(frozen=True)
class Card:
    """Of one file, or of a diffusers directory by its hub id.

    Attributes:
        source: where it comes from.
        architecture: network.architecture of EDM's files, or what reads it.
        fid, nfe: at so many network calls; None where no figure was found.
        reported: where.
        predicts: what a diffusers network puts out, see networks/diffusers_unet.py.
    """

    source: str
    architecture: str
    fid: float | None
    nfe: int | None
    reported: str = ""
    predicts: str = "x_0 or velocity, as its architecture has it"


EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
EDM_TABLE = "EDM's README"
EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/"
CFM = "https://github.com/atong01/conditional-flow-matching/releases"
RECTIFIED = "https://github.com/gnobitab/RectifiedFlow (its README links to it)"
CARDS = {
    "edm-cifar10-32x32-uncond-vp.pkl": Card(EDM, "cifar10_ddpmpp", 1.97, 35, EDM_TABLE),
    "edm-cifar10-32x32-cond-vp.pkl": Card(EDM, "cifar10_ddpmpp", 1.79, 35, EDM_TABLE),
    "edm-cifar10-32x32-uncond-ve.pkl": Card(EDM, "cifar10_ncsnpp", None, None, ""),
    "edm-imagenet-64x64-cond-adm.pkl": Card(EDM, "imagenet64_adm", 1.36, None, "SiD, as its teacher"),
    "edm2-img64-s-1073741-0.075.pkl": Card(EDM2, "edm2_img64_s", None, None),
    "edm2-img64-m-2147483-0.060.pkl": Card(EDM2, "edm2_img64_m", None, None),
    "edm2-img64-l-1073741-0.040.pkl": Card(EDM2, "edm2_img64_l", None, None),
    "edm2-img64-xl-0671088-0.040.pkl": Card(EDM2, "edm2_img64_xl", None, None),
    "cfm_cifar10_weights_step_400000.pt": Card(CFM, "torchcfm, I-CFM", 3.57, 100, "arXiv 2509.22459, table 2"),
    "checkpoint_8.pth": Card(RECTIFIED, "1-Rectified Flow, DDPM++", None, None),
    "google/ddpm-cifar10-32": Card(
        "https://huggingface.co/google/ddpm-cifar10-32", "UNet2DModel", None, None, predicts="epsilon"
    ),
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
        found = sha256_of(file)
        if not found.startswith(sha256.lower()):
            raise Refusal(f"{file} has sha256 {found[:16]}..., and {sha256[:16]} is asked for: it is another file")
    return file
