"""Downloads of published data sets: complete and verified, or one line that says what to do."""

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from official_files import write_fashion

from fgm.data.published import CIFAR_10, FASHION_MNIST, CIFAR10Parquet, RemoteDataset
from fgm.utils.errors import UserError

CONTENT = gzip.compress(b"images " * 5000)


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve a.gz; yield the server's URL, followed by the paths of all requests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.gz").write_bytes(CONTENT)
    seen: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    seen.append(f"http://127.0.0.1:{server.server_port}/")
    yield seen
    server.shutdown()
    server.server_close()
    thread.join()


def remote(url: str, content: bytes = CONTENT) -> RemoteDataset:
    return RemoteDataset("images", url, {"a.gz": md5(content).hexdigest()}, {"a.gz": "a"})


def test_processes_that_download_at_once_transfer_a_file_once(requests: list[str]) -> None:
    data = remote(requests[0])
    with ThreadPoolExecutor(2) as ranks:
        paths = [rank.result()["a.gz"] for rank in [ranks.submit(data.locate, None, True) for _ in range(2)]]
    assert paths == [data.cache / "a.gz"] * 2 and paths[0].read_bytes() == CONTENT
    assert data.locate(None, download=False)["a.gz"] == paths[0]
    assert requests[1:] == ["/a.gz"] * 2  # torchvision's look for redirects, and the transfer


def test_a_download_of_the_wrong_hash_never_gets_the_files_name(requests: list[str]) -> None:
    data = remote(requests[0], b"another file")
    with pytest.raises(UserError, match=r"cannot download .*a.gz"):
        data.locate(None, download=True)
    assert not (data.cache / "a.gz").exists()


def test_offline_a_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot download .*; put it into") as error:
        remote("http://127.0.0.1:9/").locate(None, download=True)
    assert "\n" not in str(error.value)


def test_files_are_found_gzipped_or_raw_and_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fashion-mnist needs train-images-idx3-ubyte.gz, .* apt install"):
        FASHION_MNIST.locate(str(tmp_path), download=True)
    write_fashion(tmp_path)
    names = [path.name for path in FASHION_MNIST.locate(str(tmp_path), download=False).values()]
    assert names[0] == "train-images-idx3-ubyte.gz" and names[2] == "t10k-images-idx3-ubyte"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert list(CIFAR_10.locate(str(tmp_path), download=False).values()) == [tmp_path / "cifar-10-batches-py"]


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.utils.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "fgm\[parquet\]"'):
        CIFAR10Parquet("cifar10")
