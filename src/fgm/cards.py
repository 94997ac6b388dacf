"""Published checkpoints: where each comes from, for whoever does not hold it yet.

Hashes are not known here: give yours as teacher.sha256 (of a directory, teacher.fingerprint), and a run refuses any
other file.
"""

from pathlib import Path

from fgm.errors import Refusal
from fgm.files import sha256_of

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/"
SOURCES = {
    "edm-cifar10-32x32-uncond-vp.pkl": EDM,
    "edm-cifar10-32x32-cond-vp.pkl": EDM,
    "edm-cifar10-32x32-uncond-ve.pkl": EDM,
    "edm-imagenet-64x64-cond-adm.pkl": EDM,
    "edm2-img64-s-1073741-0.075.pkl": EDM2,
    "edm2-img64-m-2147483-0.060.pkl": EDM2,
    "edm2-img64-l-1073741-0.040.pkl": EDM2,
    "edm2-img64-xl-0671088-0.040.pkl": EDM2,
    "cfm_cifar10_weights_step_400000.pt": "https://github.com/atong01/conditional-flow-matching/releases",
    "checkpoint_8.pth": "https://github.com/gnobitab/RectifiedFlow (its README links to it)",
}


def require_checkpoint(checkpoint: str, sha256: str | None) -> Path:
    """The file, where it is there and hashes to sha256 or what begins so.

    Raises:
        Refusal: it does not; of a published file it says where to get it.
    """
    file = Path(checkpoint)
    if not file.is_file():
        where = f"; it comes from {SOURCES[file.name]}, nothing is downloaded" if file.name in SOURCES else ""
        raise Refusal(f"there is no checkpoint {file}{where}")
    if sha256:
        found = sha256_of(file)
        if not found.startswith(sha256.lower()):
            raise Refusal(f"{file} has sha256 {found[:16]}..., and {sha256[:16]} is asked for: it is another file")
    return file
