"""Published image sets in their own formats: what is drawn is what lies there, and what is broken is one line."""

import gzip
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import Code, bytes_of, idx, write_cifar10, write_fashion, write_zip
from torch import Tensor

from fgm.archives import CIFAR10, FASHION, Published, fetched, locate, own_md5, raw_sha256, require_data
from fgm.data.cifar10 import Cifar10
from fgm.data.fashion import Fashion
from fgm.data.zipped import ZippedImages
from fgm.errors import Refusal
from fgm.evaluation.quantise import dequantise
from fgm.streams import stream


def fashion(tmp: Path, **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_fashion(tmp / "f")
    return Fashion(str(tmp / "f"), **options), images[:, None], torch.arange(40) % 10


def cifar10(tmp: Path, archive: bool = False, **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_cifar10(tmp / "c", archive=archive)
    return Cifar10(str(tmp / "c"), **options), images, (torch.arange(20) % 10).repeat(5)


def zipped(tmp: Path, **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_zip(tmp / "z.zip")
    return ZippedImages(str(tmp / "z.zip"), **options), images, torch.arange(12)


SETS: dict[str, Callable[..., tuple[Any, Tensor, Tensor]]] = {
    "fashion": fashion, "cifar10": cifar10, "cifar10 tar": lambda tmp, **o: cifar10(tmp, True, **o), "zip": zipped,
}  # fmt: skip


@pytest.mark.parametrize("make", SETS.values(), ids=SETS.keys())
def test_draws_are_the_files_images_with_their_labels(make: Callable, tmp_path: Path) -> None:
    data, images, labels = make(tmp_path, flips=False)
    x, y = data.draw(600, stream("draw", index=0))
    which = (x[:, None] == dequantise(images)).flatten(2).all(2)
    assert which.sum(1).eq(1).all() and which.any(0).all() and data.shape == images.shape[1:]
    assert torch.equal(y, labels[which.int().argmax(1)])
    assert torch.equal(x, data.draw(600, stream("draw", index=0))[0])
    assert data.std == pytest.approx(dequantise(images).std().item(), rel=1e-5)
    assert data.conditions(50, stream("y", index=0)).min() >= 0 and data.reference(3, stream("r", index=0)).ndim == 4


@pytest.mark.parametrize("make", SETS.values(), ids=SETS.keys())
def test_flips_mirror_half_of_the_draws_and_never_the_split(make: Callable, tmp_path: Path) -> None:
    data, images, _ = make(tmp_path, flips=True)
    x, _ = data.draw(400, stream("draw", index=0))
    straight, mirrored = ((x[:, None] == dequantise(y)).flatten(2).all(2).any(1) for y in (images, images.flip(-1)))
    assert (straight | mirrored).all() and 150 < straight.sum() < 250  # 200, standard deviation 10
    assert torch.equal(data.split["train"][0], images)


def test_a_set_without_classes_tells_no_labels(tmp_path: Path) -> None:
    for data in (fashion(tmp_path, classes=False)[0], cifar10(tmp_path, classes=False)[0],
                 zipped(tmp_path, num_classes=0)[0]):  # fmt: skip
        noise = stream("draw", index=0)
        assert data.num_classes == 0 and data.draw(3, noise)[1] is None and data.conditions(3, noise) is None


def cut(path: Path, at: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])


def damaged_fashion(tmp: Path, change: Callable[[Path], Any]) -> Fashion:
    write_fashion(tmp / "f")
    change(tmp / "f")
    return Fashion(str(tmp / "f"))


def cifar10_with(tmp: Path, **changes: Any) -> Cifar10:
    write_cifar10(tmp / "c", **changes)
    return Cifar10(str(tmp / "c"))


def cut_tar(tmp: Path) -> Cifar10:
    write_cifar10(tmp / "c", archive=True)
    cut(tmp / "c" / "cifar-10-python.tar.gz")
    return Cifar10(str(tmp / "c"))


def zip_with(tmp: Path, keep: float = 1.0, **changes: Any) -> ZippedImages:
    write_zip(tmp / "z.zip", **changes)
    cut(tmp / "z.zip", keep)
    return ZippedImages(str(tmp / "z.zip"))


CUT_IDX = idx(bytes_of(9, 28, 28))[:-5]
TRAIN = "train-images-idx3-ubyte.gz"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (lambda tmp: Fashion(str(tmp)), "no fashion-mnist: train-images-idx3-ubyte.gz is not in"),
    "gzip cut short": (lambda tmp: damaged_fashion(tmp, lambda d: cut(d / TRAIN)), "is no whole gzip file"),
    "IDX cut short": (
        lambda tmp: damaged_fashion(tmp, lambda d: (d / TRAIN).write_bytes(gzip.compress(CUT_IDX))),
        "is cut short: 7051 bytes, and its header promises 7056",
    ),
    "no IDX": (
        lambda tmp: damaged_fashion(tmp, lambda d: (d / TRAIN).write_bytes(gzip.compress(b"hello, hello"))),
        "is no IDX file",
    ),
    "another size": (
        lambda tmp: damaged_fashion(tmp, lambda d: write_fashion(d, side=32)), "pictures of (32, 32), not of (28, 28)"
    ),
    "label 11": (
        lambda tmp: damaged_fashion(tmp, lambda d: write_fashion(d, labels=torch.full((40,), 11, dtype=torch.uint8))),
        "label 0 is 11, and must lie in 0 to 9",
    ),
    "too few labels": (
        lambda tmp: damaged_fashion(tmp, lambda d: write_fashion(d, labels=torch.zeros(39, dtype=torch.uint8))),
        "holds 39 labels, and there are 40 images",
    ),
    "no CIFAR-10": (lambda tmp: Cifar10(str(tmp)), "no cifar-10: cifar-10-python.tar.gz is not in"),
    "tar cut short": (cut_tar, "is no whole CIFAR-10"),
    "labels out of range": (
        lambda tmp: cifar10_with(tmp, labels=[0] * 19 + [10]), "label 19 is 10, and must lie in 0 to 9"
    ),
    "images of 28": (
        lambda tmp: cifar10_with(tmp, data=bytes_of(20, 2352).numpy()), "have (2352,) numbers, and 32 x 32 RGB has 3072"
    ),
    "no bytes": (lambda tmp: cifar10_with(tmp, data=[1, 2]), "needs data, uint8 (n, 3072)"),
    "no zip": (lambda tmp: zip_with(tmp, 0.5), "is no whole zip"),
    "odd image": (lambda tmp: zip_with(tmp, odd=0), "is of shape (3, 63, 64), and should be of (3, 64, 64)"),
    "CIFAR-10 as ImageNet": (lambda tmp: zip_with(tmp, size=32), "is of shape (3, 32, 32), and should be"),
    "label 1000": (
        lambda tmp: zip_with(tmp, labels=[[f"00000/img{i:08d}.png", 1000] for i in range(12)]), "label 0 is 1000"
    ),
    "negative label": (lambda tmp: cifar10_with(tmp, labels=[0] * 19 + [-1]), "label 19 is -1, and must lie in 0 to 9"),
    "unlabelled": (lambda tmp: zip_with(tmp, labels=None), "give data.num_classes=0"),
}  # fmt: skip


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD.keys())
def test_bad_files_are_one_line(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        _ = make(tmp_path).split
    assert message in str(refusal.value) and "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Code(tmp_path / "ran"), "labels": []}, protocol=2))
    pickle.loads(batch.read_bytes())
    assert (tmp_path / "ran").exists(), "the pickle does run code"
    (tmp_path / "ran").unlink()
    with pytest.raises(Refusal, match=r"data_batch_3: names .* nothing in it was run"):
        _ = Cifar10(str(tmp_path)).split
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Published, list[str]]]:
    """A server of one file that breaks its first answer off half-way; and the ranges that it was asked for."""
    content, asked = gzip.compress(b"pictures " * 5000), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            span = self.headers.get("Range", "")
            asked.append(span)
            begun = int(span[6:-1]) if span else 0
            if begun >= len(content):
                return self.send_error(416)
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(content) - begun))
            self.end_headers()
            self.wfile.write(content[begun:] if span else content[: len(content) // 2])

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (tmp_path / "whole").write_bytes(content)
    url = f"http://127.0.0.1:{server.server_port}/"
    yield Published("pictures", url, {"a.gz": raw_sha256(tmp_path / "whole")}, raw_sha256), asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_fetch_goes_on_where_it_broke_off_and_is_verified(
    site: tuple[Published, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    published, asked = site
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    half = (tmp_path / "whole").stat().st_size // 2
    published.cache.mkdir(parents=True)
    (published.cache / "a.gz.part").write_bytes((tmp_path / "whole").read_bytes()[:half])
    path = locate(published, None, download=True)["a.gz"]
    assert path.read_bytes() == (tmp_path / "whole").read_bytes() and asked == [f"bytes={half}-"]
    assert f"fetching {published.url}a.gz" in capsys.readouterr().err
    assert locate(published, None, download=False)["a.gz"] == path and fetched(published, "a.gz") == path
    assert len(asked) == 1


def test_a_transfer_that_breaks_off_is_one_line_and_the_same_command_goes_on(
    site: tuple[Published, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, asked = site
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = (tmp_path / "whole").read_bytes()
    with pytest.raises(Refusal, match=r"it broke off \d+ bytes before its end; the same command goes on") as refusal:
        locate(published, None, download=True)
    assert "\n" not in str(refusal.value)
    assert (published.cache / "a.gz.part").read_bytes() == whole[: len(whole) // 2]
    assert locate(published, None, download=True)["a.gz"].read_bytes() == whole
    assert asked == ["", f"bytes={len(whole) // 2}-"]


def test_a_transfer_that_lacks_nothing_is_verified_and_kept(
    site: tuple[Published, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the machine went down between the last byte and the file's name."""
    published, _ = site
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    published.cache.mkdir(parents=True)
    (published.cache / "a.gz.part").write_bytes((tmp_path / "whole").read_bytes())
    assert locate(published, None, download=True)["a.gz"].read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("hashed, promised", [(raw_sha256, "0" * 64), (own_md5, "f" * 32)])
def test_a_wrong_hash_is_refused_and_removed(
    hashed: Any, promised: str, site: tuple[Published, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    published = replace(site[0], hashes={"a.gz": promised}, hashed=hashed)
    published.cache.mkdir(parents=True)
    (published.cache / "a.gz.part").write_bytes(b"x")
    with pytest.raises(Refusal, match="is not what was published"):
        locate(published, None, download=True)
    assert list(published.cache.iterdir()) == []


def test_offline_a_fetch_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(Refusal, match=r"cannot be fetched \(.*\): put it into") as refusal:
        locate(replace(CIFAR10, url="http://127.0.0.1:9/"), None, download=True)
    assert "\n" not in str(refusal.value)


def test_missing_sets_are_said_from_a_config(tmp_path: Path) -> None:
    node = {"data": {"_target_": "fgm.data.fashion.Fashion", "directory": str(tmp_path), "download": False}}
    with pytest.raises(Refusal, match="no fashion-mnist"):
        require_data(node)
    with pytest.raises(Refusal, match="there is no archive"):
        require_data({"data": {"_target_": "fgm.data.zipped.ZippedImages", "path": str(tmp_path / "no.zip")}})
    write_fashion(tmp_path)
    require_data(node)
    assert set(FASHION.hashes) == {
        f"{p}-{k}-ubyte.gz" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")
    }
