"""Published archives: found where they lie, fetched whole or not at all, and missing ones said from a config."""

import gzip
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from official_files import write_fashion

from fgm.data.parquet import Cifar10Parquet
from fgm.utils import archives
from fgm.utils.archives import CIFAR10, FASHION, Published, fetched, locate, own_md5, raw_sha256, require_data
from fgm.utils.errors import UserError

RAW = b"images " * 5000
CONTENT = gzip.compress(RAW)
HALF = len(CONTENT) // 2
Site = tuple[Published, list[str]]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of one file that breaks its first answer off half-way, and the ranges that it was asked for."""
    asked: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            span = self.headers.get("Range", "")
            asked.append(span)
            begun = int(span[6:-1]) if span else 0
            if begun >= len(CONTENT):
                return self.send_error(416)
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(CONTENT) - begun))
            self.end_headers()
            self.wfile.write(CONTENT[begun:] if span else CONTENT[:HALF])

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/"
    published = Published("images", url, {"a.gz": sha256(RAW).hexdigest()}, raw_sha256)
    published.cache.mkdir(parents=True)
    yield published, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_fetch_goes_on_where_it_broke_off_and_is_verified(site: Site, capsys: Any) -> None:
    published, asked = site
    (published.cache / "a.gz.part").write_bytes(CONTENT[:HALF])
    path = locate(published, None, download=True)["a.gz"]
    assert path.read_bytes() == CONTENT and asked == [f"bytes={HALF}-"]
    assert f"fetching {published.url}a.gz" in capsys.readouterr().err
    assert locate(published, None, download=False)["a.gz"] == path and fetched(published, "a.gz") == path
    assert len(asked) == 1


def test_a_transfer_that_breaks_off_is_one_line_and_the_same_command_goes_on(site: Site) -> None:
    published, asked = site
    with pytest.raises(UserError, match=r"it broke off \d+ bytes before its end; the same command goes on") as refusal:
        locate(published, None, download=True)
    assert "\n" not in str(refusal.value)
    assert (published.cache / "a.gz.part").read_bytes() == CONTENT[:HALF]
    assert locate(published, None, download=True)["a.gz"].read_bytes() == CONTENT
    assert asked == ["", f"bytes={HALF}-"]


def test_ranks_that_fetch_at_once_take_turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one goes on where the first one's transfer broke off, in place of writing into it."""
    published, asked = site
    begins = archives.transfer
    monkeypatch.setattr(archives, "transfer", lambda *given: (time.sleep(0.3), begins(*given)))
    with ThreadPoolExecutor() as ranks:
        both = [ranks.submit(fetched, published, "a.gz") for _ in range(2)]
    refused, whole = sorted(both, key=lambda rank: rank.exception() is None)
    assert isinstance(refused.exception(), UserError) and whole.result().read_bytes() == CONTENT
    assert asked == ["", f"bytes={HALF}-"]


def test_a_transfer_that_lacks_nothing_is_verified_and_kept(site: Site) -> None:
    """As where the machine went down between the last byte and the file's name."""
    published, _ = site
    (published.cache / "a.gz.part").write_bytes(CONTENT)
    assert locate(published, None, download=True)["a.gz"].read_bytes() == CONTENT


@pytest.mark.parametrize("hashed, promised", [(raw_sha256, "0" * 64), (own_md5, "f" * 32)])
def test_a_wrong_hash_is_refused_and_removed(hashed: Any, promised: str, site: Site) -> None:
    published = replace(site[0], hashes={"a.gz": promised}, hashed=hashed)
    (published.cache / "a.gz.part").write_bytes(b"x")
    with pytest.raises(UserError, match="is not what was published"):
        locate(published, None, download=True)
    assert [path.name for path in published.cache.iterdir()] == [".a.gz.lock"]


def test_offline_a_fetch_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be fetched \(.*\): put it into") as refusal:
        locate(replace(CIFAR10, url="http://127.0.0.1:9/"), None, download=True)
    assert "\n" not in str(refusal.value)


def test_missing_sets_are_said_from_a_config(tmp_path: Path) -> None:
    node = {"data": {"_target_": "fgm.data.fashion.Fashion", "directory": str(tmp_path), "download": False}}
    with pytest.raises(UserError, match="no fashion-mnist"):
        require_data(node)
    with pytest.raises(UserError, match="there is no archive"):
        require_data({"data": {"_target_": "fgm.data.zipped.ZippedImages", "path": str(tmp_path / "no.zip")}})
    write_fashion(tmp_path)
    require_data(node)
    assert set(FASHION.hashes) == {
        f"{p}-{k}-ubyte.gz" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")
    }


def test_without_pyarrow_a_config_is_refused_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.utils.errors.find_spec", lambda name: None)
    node = {"data": {"_target_": "fgm.data.parquet.Cifar10Parquet", "directory": "cifar10"}}
    with pytest.raises(UserError, match=r"pip install -e '.\[parquet\]'") as refusal:
        require_data(node)
    with pytest.raises(UserError, match=r"pip install -e '.\[parquet\]'"):
        Cifar10Parquet("cifar10")
    assert "\n" not in str(refusal.value)
