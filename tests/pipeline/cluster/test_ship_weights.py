"""Weights that the driver has fetched reach the caches of the nodes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cluster.ship_weights import MAX_NODES, ship_weights, weights_on_nodes
from pipeline.errors import RunError
from pipeline.weights.cache import place_in_cache, store_in_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the cache of a machine the one that is used."""

    def use(machine: str) -> Path:
        monkeypatch.setenv("HTC_CACHE", str(tmp_path / machine))
        return tmp_path / machine / "weights"

    return use


def fetched(folder: Path) -> Path:
    path = folder / "0123456789abcdef" / "w.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(range(256)))
    return path


def test_each_node_gets_the_file_once_in_its_own_cache(cache: Callable[[str], Path]) -> None:
    path = fetched(cache("driver"))
    stored: list[np.ndarray] = []

    def on_nodes(action: Callable[..., None], name: str, reference: int, **limits: float) -> dict[str, None]:
        assert limits["limit"] == MAX_NODES
        for machine in ("one", "two"):
            folder = cache(machine)
            action(name, stored[reference])
            target = folder / path.parent.name / path.name
            assert target.read_bytes() == path.read_bytes()
            before = target.stat().st_mtime_ns
            action(name, stored[reference])
            assert target.stat().st_mtime_ns == before
            assert [each.suffix for each in folder.rglob("*") if each.is_file()].count(".part") == 0
        return {"one": None, "two": None}

    def put(value: np.ndarray) -> int:
        stored.append(value)
        return len(stored) - 1

    ship_weights(path, put=put, run_on_nodes=on_nodes)
    assert len(stored) == 1


def test_a_failure_is_no_failure_of_the_run(cache: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    def on_nodes(*arguments: object, **limits: float) -> dict[str, None]:
        raise RunError("no node answers")

    ship_weights(fetched(cache("driver")), put=lambda value: 0, run_on_nodes=on_nodes)
    assert "no node answers" in caplog.text


def test_only_files_of_the_cache_are_shipped(
    cache: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped: list[Path] = []
    monkeypatch.setattr("pipeline.cluster.ship_weights.ship_weights", shipped.append)
    path = fetched(cache("driver"))
    for each in (None, tmp_path / "own.safetensors", path):
        with weights_on_nodes(each):
            pass
    assert shipped == [path]
    assert place_in_cache(tmp_path / "own.safetensors") is None


def test_a_file_in_the_cache_is_not_written_again(cache: Callable[[str], Path]) -> None:
    path = fetched(cache("driver"))
    store_in_cache(str(path.relative_to(cache("driver"))), memoryview(b"other bytes"))
    assert path.read_bytes() == bytes(range(256))
