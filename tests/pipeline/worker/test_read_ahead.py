"""A worker's memory: pixels and encoded bytes of both shards together stay within their bounds, also after failures."""

import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.worker.shard_pipeline
from htc_model.config import load_preset
from htc_model.structures import ImageBatch, RawDetections
from pipeline.errors import TransientStorageError
from pipeline.inputs.decode import read_header
from tests.support.fakes.models import FakeModel, write_images
from tests.support.fakes.shard_bench import Bench, spec_for

SIZE = (32, 48)
PIXEL_BYTES = 32 * 48 * 3
PATIENCE_S = 60.0


class LivePixels:
    """Counts the bytes of decoded pixels that are still referred to, and their peak."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0
        self.peak = 0
        self.decoded = 0

    def watch(self, decode: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def decode_watched(payload: bytes, **options: Any) -> np.ndarray:
            pixels = decode(payload, **options)
            self._add(pixels.nbytes)
            weakref.finalize(pixels, self._add, -pixels.nbytes)
            return pixels

        return decode_watched

    def _add(self, count: int) -> None:
        with self._lock:
            self.bytes += count
            self.decoded += count > 0
            self.peak = max(self.peak, self.bytes)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> LivePixels:
    live = LivePixels()
    monkeypatch.setattr(
        pipeline.worker.shard_pipeline, "decode_image", live.watch(pipeline.worker.shard_pipeline.decode_image)
    )
    return live


def bench_with(folder: Path, images: int, batch_size: int = 1, **plan: Any) -> Bench:
    """Return a bench with room for the pixels of so many images; its model resizes to very few pixels."""
    config = load_preset("htc_lite0_fpn")
    tiny = replace(config, resize=replace(config.resize, short_side=32, long_side=64))
    model = FakeModel(tiny, **plan)
    return Bench(folder, model, batch_size=batch_size, cpus=2, ahead_bytes=images * PIXEL_BYTES)


def run_both(bench: Bench, shards: list[list[Path]]) -> None:
    threads = [
        threading.Thread(target=bench.process, args=(paths,), kwargs={"index": index})
        for index, paths in enumerate(shards)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize(("room", "batch_size"), [(1, 1), (4, 1), (8, 4), (12, 8)])
def test_two_shards_hold_no_more_pixels_than_the_bound_and_one_image(
    tmp_path: Path, live: LivePixels, room: int, batch_size: int
) -> None:
    shards = [write_images(tmp_path / f"in{index}", 40) for index in range(2)]
    bench = bench_with(tmp_path, room, batch_size, delay_s=0.001)
    run_both(bench, shards)
    assert [len(bench.image_rows(index)) for index in range(2)] == [40, 40]
    assert live.decoded == 80
    assert live.peak <= (room + 1) * PIXEL_BYTES
    assert live.bytes == 0
    assert bench.resources.pixels.held == bench.resources.encoded.held == 0


def test_the_second_shard_has_its_first_images_ready_when_its_turn_comes(
    tmp_path: Path, live: LivePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [write_images(tmp_path / f"in{index}", 40) for index in range(2)]
    bench = bench_with(tmp_path, 8)
    infer, began, full = bench.model.infer, threading.Event(), threading.Event()
    seen: list[int] = []

    def infer_when_full(batch: ImageBatch) -> list[RawDetections]:
        if not began.is_set():
            began.set()
            assert full.wait(PATIENCE_S)
        return infer(batch)

    def check_lanes() -> None:
        # Three quarters for the shard that infers, a quarter for the one that waits: six images and two.
        lanes = bench.resources.pixels.lanes
        change = bench.resources.pixels.change
        with change:
            assert change.wait_for(
                lambda: len(lanes) == 2 and sorted(lane.held for lane in lanes) == [2 * PIXEL_BYTES, 6 * PIXEL_BYTES],
                PATIENCE_S,
            )
            seen.append(sum(lane.held for lane in lanes))
        full.set()

    monkeypatch.setattr(bench.model, "infer", infer_when_full)
    checker = threading.Thread(target=check_lanes)
    checker.start()
    run_both(bench, shards)
    checker.join(PATIENCE_S)
    assert seen == [8 * PIXEL_BYTES]
    assert live.peak <= 9 * PIXEL_BYTES


def test_an_image_larger_than_the_bound_goes_through(tmp_path: Path, live: LivePixels) -> None:
    small, large = write_images(tmp_path / "small", 3), write_images(tmp_path / "large", 2, (300, 400))
    bench = bench_with(tmp_path, 2)
    run_both(bench, [[*small[:1], *large, *small[1:]], [*large, *small]])
    assert [row["status"] for index in range(2) for row in bench.image_rows(index)] == ["ok"] * 10
    # The large images exceed the bound, but at most one at a time.
    assert live.peak <= 2 * PIXEL_BYTES + 300 * 400 * 3


def test_failures_of_every_kind_free_their_bytes(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 12)
    paths[1].unlink()
    paths[2].write_bytes(b"no image")
    paths[3].write_bytes(paths[0].read_bytes()[:-200])
    paths += write_images(tmp_path / "poison", 3, (32, 47))
    bench = bench_with(tmp_path, 2, 4, deeds={(32, 47): "raise"})
    bench.process(paths)
    statuses = [str(row["status"]) for row in bench.image_rows()]
    assert statuses == ["ok", "missing", "unreadable", "unreadable", *["ok"] * 8, *["failed"] * 3]
    resources = bench.resources
    # The pixels of the batch that raised live on in the log record that pytest keeps.
    assert (resources.pixels.held, resources.encoded.held, resources.decoding.held) == (0, 0, 0)


def test_an_attempt_that_storage_ends_leaves_nothing_held_for_the_next(
    tmp_path: Path, live: LivePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "in", 20)
    fetch_image = pipeline.worker.shard_pipeline.fetch_image

    def broken(ref: Any, *rest: Any, **options: Any) -> Any:
        if ref.uri == str(paths[7]):
            raise TransientStorageError("503 SlowDown")
        return fetch_image(ref, *rest, **options)

    bench = bench_with(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.worker.shard_pipeline, "fetch_image", broken)
        with pytest.raises(TransientStorageError):
            bench.process(paths)
    resources = bench.resources
    assert (resources.pixels.held, resources.encoded.held, live.bytes) == (0, 0, 0)
    bench.process(paths)
    assert len(bench.image_rows()) == 20
    assert live.peak <= 3 * PIXEL_BYTES


def test_encoded_bytes_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are decoded slowly: what is read ahead of them stays within its own bound."""
    shards = [write_images(tmp_path / f"in{index}", 30) for index in range(2)]
    size = max(path.stat().st_size for paths in shards for path in paths)
    bench, peaks = bench_with(tmp_path, 100), [0]
    monkeypatch.setattr(pipeline.worker.shard_pipeline, "UNLISTED_BYTES", size)
    bench.resources.encoded.most = 5 * size
    decode = pipeline.worker.shard_pipeline.decode_image

    def slow(payload: bytes, **options: Any) -> np.ndarray:
        peaks[0] = max(peaks[0], bench.resources.encoded.held)
        return decode(payload, **options)

    monkeypatch.setattr(pipeline.worker.shard_pipeline, "decode_image", slow)
    run_both(bench, shards)
    assert 0 < peaks[0] <= 6 * size


def test_what_decoding_needs_is_read_from_the_header(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path / "in", 1)
    payload = path.read_bytes()
    # The header is in the first bytes; decoding finds out what is missing after it.
    for content in (payload, payload[: len(payload) // 2]):
        header = read_header(content)
        assert header.pixel_bytes == PIXEL_BYTES
        assert header.decoding_bytes >= PIXEL_BYTES
    for refused in (b"", b"no image", payload[:10]):
        assert read_header(refused).pixel_bytes == 0
    assert read_header(payload, max_pixels=10).pixel_bytes == 0
    assert spec_for(tmp_path).images.max_pixels > 10
