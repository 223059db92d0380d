"""Weights are downloaded once, continued after an interruption, and checked."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from htc_model.config import ModelConfigError
from htc_model.network.detector import build_model
from htc_model.weights import model_zoo as registry
from htc_model.weights.openmmlab import WeightsError
from htc_model.weights.untrained import untrained_state
from pipeline.errors import StorageError, WeightsUnavailableError
from pipeline.job_spec.model import ModelSection
from pipeline.storage.storage import Storage
from pipeline.weights.cache import cache_folder, download, fetch_weights, resolve_weights
from pipeline.weights.verify import verify_file

CONTENT = bytes(range(256)) * 400
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
FILE_NAME = f"tiny_coco-{DIGITS}.pth"


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any path, with ranges, and records the requested ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{FILE_NAME}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._head(200, len(self.server.content))

    def do_GET(self) -> None:
        content, wanted = self.server.content, self.headers.get("Range")
        self.server.ranges.append(wanted)
        if wanted is None:
            self._head(200, len(content))
            self.wfile.write(content)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        begin, end = int(first), min(int(last or len(content)) + 1, len(content))
        self._head(206, end - begin, f"bytes {begin}-{end - 1}/{len(content)}")
        self.wfile.write(content[begin:end])

    def _head(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HTC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> registry.PublishedWeights:
    entry = replace(
        registry.find("htc_r50_fpn"), url=server.url, file_name=FILE_NAME, sha256_prefix=DIGITS, name="tiny"
    )
    monkeypatch.setattr(registry, "PUBLISHED", (entry,))
    return entry


def test_the_cache_is_in_the_home_folder_by_default(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("HTC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "htc-batch" / "weights"


def test_a_file_is_downloaded_once(server: Server, published: registry.PublishedWeights, cache: Path) -> None:
    path = fetch_weights("htc_r50_fpn")
    assert path == cache / FILE_NAME
    assert path.read_bytes() == CONTENT
    asked = len(server.ranges)
    assert fetch_weights("tiny") == path
    assert len(server.ranges) == asked
    assert [file.name for file in cache.iterdir() if not file.name.startswith(".")] == [FILE_NAME]


def test_an_interrupted_download_is_continued(
    server: Server, published: registry.PublishedWeights, tmp_path: Path
) -> None:
    (tmp_path / f"{FILE_NAME}.part").write_bytes(CONTENT[:50_000])
    progress: list[tuple[int, int | None]] = []
    path = fetch_weights(
        "tiny", tmp_path, on_progress=lambda here, total: progress.append((here, total)), chunk_bytes=30_000
    )
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=50000-79999", "bytes=80000-102399"]
    assert progress == [(80_000, 102_400), (102_400, 102_400)]
    assert not (tmp_path / f"{FILE_NAME}.part").exists()


def test_a_part_longer_than_the_file_is_started_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"more")
    download(server.url, tmp_path / "w.pth", DIGITS)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_download_with_a_wrong_hash_is_deleted(
    server: Server, published: registry.PublishedWeights, tmp_path: Path
) -> None:
    server.content = b"another file"
    with pytest.raises(WeightsUnavailableError, match=rf"instead of {DIGITS}.*deleted"):
        fetch_weights("tiny", tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.suffix in {".pth", ".part"}]
    server.content = CONTENT
    assert fetch_weights("tiny", tmp_path).read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_named_and_kept(published: registry.PublishedWeights, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(CONTENT[:100])
    with pytest.raises(WeightsUnavailableError, match=r"is damaged.*delete it"):
        fetch_weights("tiny", tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == CONTENT[:100]


def test_workers_that_start_together_share_one_download(
    server: Server, published: registry.PublishedWeights, cache: Path
) -> None:
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch_weights("tiny"), range(6)))
    assert set(paths) == {cache / FILE_NAME}
    assert len(server.ranges) == 1


class Offline(Storage):
    def stat(self, uri: str) -> Any:
        raise StorageError(f"{uri} cannot be reached.")


def test_the_offline_error_states_the_way_out(published: registry.PublishedWeights, cache: Path) -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        fetch_weights("htc_r50_fpn", storage=Offline())
    message = str(caught.value)
    assert published.url in message
    assert f"htc weights verify {cache / FILE_NAME}" in message
    assert "cannot be reached" in message


def test_unknown_and_unpublished_names_are_refused() -> None:
    with pytest.raises(WeightsUnavailableError, match="did you mean 'htc_r50_fpn_1x'"):
        fetch_weights("htc_r50_fpn_2x")
    with pytest.raises(WeightsUnavailableError, match="Use --weights with a file of your own"):
        fetch_weights("htc_r50_fpn_dcnv2")


def test_a_folder_that_cannot_be_created_is_named(published: registry.PublishedWeights, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsUnavailableError, match="HTC_CACHE"):
        fetch_weights("tiny", tmp_path / "file")


# --- what `model.weights` means ------------------------------------------------------------------------------


def test_untrained_weights_need_no_file() -> None:
    assert resolve_weights(ModelSection(weights="untrained")) is None


def test_coco_means_the_presets_published_file(published: registry.PublishedWeights, cache: Path) -> None:
    assert resolve_weights(ModelSection(preset="htc_r50_fpn", weights="coco")) == cache / FILE_NAME


def test_a_path_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "my weights #1.pth"
    path.write_bytes(b"x")
    assert resolve_weights(ModelSection(weights=str(path))) == path
    with pytest.raises(WeightsUnavailableError, match=r"no weights file .*absent\.pth"):
        resolve_weights(ModelSection(weights=str(tmp_path / "absent.pth")))


def test_a_uri_is_copied_once_and_again_when_it_changed(cache: Path) -> None:
    storage = Storage()
    storage.write("memory://bucket/w.pth", b"first")
    section = ModelSection(weights="memory://bucket/w.pth")
    first = resolve_weights(section, storage)
    assert first is not None
    assert first.read_bytes() == b"first"
    assert first.is_relative_to(cache)
    assert resolve_weights(section, storage) == first
    storage.write("memory://bucket/w.pth", b"second version")
    second = resolve_weights(section, storage)
    assert second is not None
    assert second.read_bytes() == b"second version"
    with pytest.raises(WeightsUnavailableError, match="no weights file memory://bucket/absent"):
        resolve_weights(ModelSection(weights="memory://bucket/absent.pth"), storage)


# --- verify ----------------------------------------------------------------------------------------------------


def test_verify_describes_a_file(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = build_model("htc_lite0_fpn").state_dict()
    path = tmp_path / "w.pth"
    torch.save({"state_dict": untrained_state(shapes), "meta": {"CLASSES": ["a", "b"]}}, path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    right, wrong = tmp_path / f"w-{digits}.pth", tmp_path / "w-00000000.pth"
    wrong.write_bytes(path.read_bytes())
    path.rename(right)

    report = verify_file(right)
    assert (report.preset, report.is_hash_right, report.published) == ("htc_lite0_fpn", True, None)
    assert report.expected_prefix == digits
    assert report.classes == ("a", "b")
    assert report.bytes == right.stat().st_size
    assert report.parameters == sum(tensor.numel() for tensor in shapes.values())
    assert verify_file(wrong).is_hash_right is False


def test_verify_against_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a.weight": torch.zeros(3)}, path)
    assert verify_file(path).preset is None
    assert verify_file(path).is_hash_right is None
    with pytest.raises(WeightsError, match="does not fit htc_lite0_fpn"):
        verify_file(path, "htc_lite0_fpn")
    with pytest.raises(ModelConfigError, match="htc_lite0_fpn"):
        verify_file(path, "htc_lite")
