"""A data set that is not there, and a network that is not."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from tfmeta.data import ClassDataset, readers
from tfmeta.data.network import any_reachable, hosts_of


class NotFound(BaseHTTPRequestHandler):
    """Has nothing, and says so."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), NotFound) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_hosts_of_addresses() -> None:
    urls = ["https://b.org/x/y.zip", "http://a.org:80/z", "https://b.org/w", "file:///tmp/x"]
    assert hosts_of(urls) == ["http://a.org:80", "https://b.org"]


def test_one_host_that_answers_is_enough(server: str, silent: str, closed: str) -> None:
    assert any_reachable([closed, server])
    assert any_reachable([silent, server])
    assert any_reachable([])
    assert not any_reachable([closed])
    assert not any_reachable([silent, closed], seconds=0.2)


def test_without_a_network_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    asked: list[str] = []

    def unreachable(hosts: list[str]) -> bool:
        asked.extend(hosts)
        return any_reachable([closed])

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(readers, "any_reachable", unreachable)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(FileNotFoundError) as caught:
        ClassDataset.from_tfds("omniglot", "train", tmp_path)
    for words in ("'omniglot'", str(tmp_path), "there is no network", "github.com", "`data_dir`"):
        assert words in str(caught.value)
    assert asked == ["https://github.com"]


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"'omniglot' is read .*: pip install tensorflow-dataset"):
        ClassDataset.from_tfds("omniglot", "train")
