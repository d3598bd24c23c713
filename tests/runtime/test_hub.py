"""Models by id: the local cache, and the network only when asked for."""

import socket

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from octavo.runtime.errors import CheckpointError
from octavo.runtime.hub import resolve

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was touched"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hugging Face cache that holds one model, org/here."""
    snapshot = tmp_path / "hub" / "models--org--here" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    original = huggingface_hub.snapshot_download

    def within_tmp(*args, **options):
        return original(*args, cache_dir=tmp_path / "hub", **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", within_tmp)
    return snapshot


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").samefile(tmp_path / "org" / "name"), "a folder goes before a model id"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org") == tmp_path / "org"


def test_an_id_is_found_in_the_cache(cache):
    assert resolve("org/here") == cache


def test_an_id_that_is_not_in_the_cache(cache):
    with pytest.raises(CheckpointError, match="org/absent is neither a folder nor .*--download"):
        resolve("org/absent")


def test_a_download_that_was_broken_off(cache):
    (cache / "config.json").unlink()
    with pytest.raises(CheckpointError, match="--download"):
        resolve("org/here")


@pytest.mark.parametrize("model", ["/nowhere/at/all", "name", "a/b/c", "", "../x", "org/na me", "http://x/y"])
def test_what_is_neither_folder_nor_id(model):
    with pytest.raises(CheckpointError, match="is not a folder"):
        resolve(model)


def test_an_id_the_hub_would_refuse(cache):
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        resolve("org/a--b")


def test_download_asks_the_hub(monkeypatch, tmp_path):
    asked = {}

    def download(model, **options):
        asked.update(options, model=model)
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name", download=True) == tmp_path
    assert asked["model"] == "org/name" and asked["local_files_only"] is False
    assert not any(".py" in pattern or pattern == "*" for pattern in asked["allow_patterns"]), "no code is fetched"


def test_without_download_only_local_files(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **options: asked.update(options) or tmp_path)
    with pytest.raises(CheckpointError):
        resolve("org/name")
    assert asked["local_files_only"] is True


@pytest.mark.parametrize(
    "error, words",
    [
        (LocalEntryNotFoundError("x"), "out of reach"),
        (ConnectionError("the wire is cut\nmore"), "the wire is cut"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_downloads_that_fail(monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=words):
        resolve("org/name", download=True)
