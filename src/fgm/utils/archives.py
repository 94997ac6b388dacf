"""Published archives of images: where they lie on this machine, where they come from, and what they must hash to.

    Fashion-MNIST   four IDX files, gzipped or raw     arXiv 1708.07747; Debian's package dataset-fashion-mnist
    CIFAR-10        cifar-10-python.tar.gz, or its unpacked cifar-10-batches-py     Krizhevsky 2009

The hashes of Fashion-MNIST are of the raw IDX files, as Debian's gzip streams have other headers than Zalando's; they
were taken from Debian's 0.0~git20200523. CIFAR-10's is of the archive, as torchvision has it. Files that the user names
may be anything of the right form; what is fetched must match. Nothing is fetched unless it is asked for. This module
needs the standard library alone, so that missing files are said within milliseconds.
"""

import fcntl
import gzip
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest, md5, sha256
from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError, require_installed

CHUNK = 1 << 20
PATIENCE = 30.0  # seconds without an answer
NOTHING_LACKS = 416  # HTTP's answer to a range that begins at the end


def raw_sha256(file: Path) -> str:
    """Of what a gzipped file holds."""
    with gzip.open(file) as stream:
        return file_digest(stream, sha256).hexdigest()  # type: ignore[arg-type]


def own_md5(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, lambda: md5(usedforsecurity=False)).hexdigest()


@dataclass(frozen=True)
class Published:
    """Files of a data set.

    Attributes:
        key: of the cache folder.
        url: of the folder that holds them.
        hashes: of the files, by name.
        hashed: how they are hashed.
        places: folders where a package puts them.
        remedy: what else the user can do.
    """

    key: str
    url: str
    hashes: dict[str, str]
    hashed: Callable[[Path], str]
    places: tuple[Path, ...] = ()
    remedy: str = ""

    @property
    def cache(self) -> Path:
        return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fgm" / self.key


FASHION = Published(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    raw_sha256,
    (Path("/usr/share/datasets/fashion-mnist"),),
    "apt install dataset-fashion-mnist, or ",
)
CIFAR10 = Published(
    "cifar-10",
    "https://www.cs.toronto.edu/~kriz/",
    {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    own_md5,
)


def variants(directory: Path, name: str) -> list[Path]:
    """The file, or what it unpacks to, where it is there."""
    raw = {"cifar-10-python.tar.gz": "cifar-10-batches-py"}.get(name, name.removesuffix(".gz"))
    return [path for path in (directory / name, directory / raw) if path.exists()]


def locate(published: Published, directory: str | None, download: bool) -> dict[str, Path]:
    """Each file's path, by its name; in directory, or in the package's place, or in the cache.

    Raises:
        UserError: one is missing, cannot be fetched, or is fetched and not what was published.
    """
    places = [Path(directory)] if directory else [*published.places, published.cache]
    for place in places:
        found = {name: paths[0] for name in published.hashes if (paths := variants(place, name))}
        if len(found) == len(published.hashes):
            return found
    if directory or not download:
        lacking = next(name for name in published.hashes if not variants(places[-1], name))
        raise UserError(
            f"no {published.key}: {lacking} is not in {' or '.join(map(str, places))}; "
            f"{published.remedy}give data.directory=<folder> or data.download=true"
        )
    return {name: fetched(published, name) for name in published.hashes}


def fetched(published: Published, name: str) -> Path:
    """The file in the cache, fetched if it is not there; a transfer that broke off goes on where it stopped.

    Processes that fetch it at once, as the ranks of a training, take turns.
    """
    path = published.cache / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{name}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not path.exists():
            fetch(published, name, path)
    return path


def fetch(published: Published, name: str, path: Path) -> None:
    partial = path.with_name(f"{name}.part")
    print(f"fetching {published.url}{name} to {path}", file=sys.stderr)
    try:
        transfer(published.url + name, partial)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{published.url}{name} cannot be fetched ({reason}): put it into {path.parent}") from error
    require_hash(published, partial, name)
    os.replace(partial, path)


def transfer(url: str, partial: Path) -> None:
    """What is lacking of url's bytes, appended to partial; from the start where the server knows no ranges.

    Raises:
        OSError: the answer ended before its promised length; partial keeps what came.
    """
    begun = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if begun and error.code == NOTHING_LACKS:
            return
        raise
    with answer, partial.open("ab" if answer.status == 206 else "wb") as out:
        received = 0
        while chunk := answer.read(CHUNK):
            received += out.write(chunk)
    promised = int(answer.headers.get("Content-Length", received))
    if received < promised:
        raise OSError(f"it broke off {promised - received} bytes before its end; the same command goes on from there")


def require_hash(published: Published, partial: Path, name: str) -> None:
    try:
        found = published.hashed(partial)
    except (OSError, EOFError) as error:
        found = f"unreadable, {error}"
    if found != published.hashes[name]:
        partial.unlink()
        raise UserError(
            f"{published.url}{name} is not what was published (hash {found[:16]}, not {published.hashes[name][:16]}): "
            "it was removed; the same command fetches it again"
        )


def require_pyarrow() -> None:
    require_installed("pyarrow", "data = cifar10_parquet, unlike data = cifar10,", "parquet")


SETS = {"fgm.data.fashion.Fashion": FASHION, "fgm.data.cifar10.Cifar10": CIFAR10}


def require_data(node: Any) -> None:
    """Of every data set below a config's node.

    Raises:
        UserError: its files are missing, or what reads them; what may be fetched is left for later.
    """
    if not isinstance(node, dict):
        return
    published = SETS.get(str(node.get("_target_")))
    if published and not node.get("download"):
        locate(published, node.get("directory"), download=False)
    if node.get("_target_") == "fgm.data.zipped.ZippedImages" and not Path(node["path"]).is_file():
        raise UserError(f"there is no archive {node['path']}: give data.path=<zip in the layout of EDM's dataset_tool>")
    if node.get("_target_") == "fgm.data.parquet.Cifar10Parquet":
        require_pyarrow()
    for value in node.values():
        require_data(value)
