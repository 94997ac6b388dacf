"""Published archives: found where they lie, fetched whole or not at all, and missing ones said from a config."""

import gzip
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from official_files import write_fashion

from fgm import archives
from fgm.archives import CIFAR10, FASHION, Published, fetched, locate, own_md5, raw_sha256, require_data
from fgm.data.parquet import Cifar10Parquet
from fgm.errors import Refusal


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Published, list[str]]]:
    """A server of one file that breaks its first answer off half-way; and the ranges that it was asked for."""
    content, asked = gzip.compress(b"images " * 5000), []

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
    yield Published("images", url, {"a.gz": raw_sha256(tmp_path / "whole")}, raw_sha256), asked
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


def test_ranks_that_fetch_at_once_take_turns(
    site: tuple[Published, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one goes on where the first one's transfer broke off, in place of writing into it."""
    published, asked = site
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    begins = archives.transfer
    monkeypatch.setattr(archives, "transfer", lambda *given: (time.sleep(0.3), begins(*given)))
    with ThreadPoolExecutor() as ranks:
        both = [ranks.submit(fetched, published, "a.gz") for _ in range(2)]
    refused, whole = sorted(both, key=lambda rank: rank.exception() is None)
    assert isinstance(refused.exception(), Refusal)
    assert whole.result().read_bytes() == (tmp_path / "whole").read_bytes()
    assert asked == ["", f"bytes={(tmp_path / 'whole').stat().st_size // 2}-"]


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
    assert [path.name for path in published.cache.iterdir()] == [".a.gz.lock"]


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


def test_without_pyarrow_a_config_is_refused_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.errors.find_spec", lambda name: None)
    node = {"data": {"_target_": "fgm.data.parquet.Cifar10Parquet", "directory": "cifar10"}}
    with pytest.raises(Refusal, match=r"pip install -e '.\[parquet\]'") as refusal:
        require_data(node)
    with pytest.raises(Refusal, match=r"pip install -e '.\[parquet\]'"):
        Cifar10Parquet("cifar10")
    assert "\n" not in str(refusal.value)
