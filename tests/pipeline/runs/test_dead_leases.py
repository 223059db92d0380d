"""The lease of a driver that died before its run was begun, or after it was complete, is removed by the next driver."""

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.runs.lease import FORGOTTEN_AFTER_S, WATCH_S, LeaseHolder, clear_dead_lease, take_lease
from pipeline.runs.open import open_run
from pipeline.runs.process_id import identify_process
from pipeline.runs.run import RunHandle
from pipeline.storage.cas_file import CasFile
from pipeline.storage.storage import Storage

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ALIVE = LeaseHolder("t", socket.gethostname(), 1, identify_process(), NOON.isoformat(), NOON.isoformat())
# The same process number, begun at another time.
DEAD = replace(ALIVE, process=f"{identify_process().rpartition(' ')[0]} 1")
FAR_AWAY = replace(ALIVE, host="far-away", process="")


def leave(storage: Storage, uri: str, holder: LeaseHolder) -> str:
    storage.write(f"{uri}/runs/night/lease.json", holder.encode())
    return f"{uri}/runs/night/lease.json"


@pytest.mark.parametrize(
    ("holder", "silence_s", "is_cleared"),
    [
        (DEAD, 0.0, True),
        (ALIVE, 0.0, False),
        (FAR_AWAY, FORGOTTEN_AFTER_S, False),
        (FAR_AWAY, FORGOTTEN_AFTER_S + 1, True),
        (FAR_AWAY, -FORGOTTEN_AFTER_S, False),
        (FAR_AWAY, -FORGOTTEN_AFTER_S - 1, True),
    ],
    ids=["dead here", "alive", "far away", "long forgotten", "ahead", "far ahead"],
)
def test_only_leases_of_dead_holders_are_removed(
    output: tuple[Storage, str], holder: LeaseHolder, silence_s: float, is_cleared: bool
) -> None:
    storage, uri = output
    lease = leave(storage, uri, holder)
    later = NOON + timedelta(seconds=silence_s)
    waits: list[float] = []
    assert clear_dead_lease(storage, uri, "night", clock=lambda: later, sleep=waits.append) is is_cleared
    assert storage.exists(lease) is not is_cleared
    assert sum(waits) == (WATCH_S if is_cleared and holder is FAR_AWAY else 0)


def test_a_lease_that_is_renewed_while_it_is_watched_stays(output: tuple[Storage, str]) -> None:
    """The lease of a driver whose clock is years behind."""
    storage, uri = output
    lease = leave(storage, uri, FAR_AWAY)
    later = NOON + timedelta(days=900)

    def renew(seconds: float) -> None:
        leave(storage, uri, replace(FAR_AWAY, beats=1))

    assert not clear_dead_lease(storage, uri, "night", clock=lambda: later, sleep=renew)
    assert storage.exists(lease)


def test_a_lease_is_removed_when_the_answer_to_its_replacement_was_lost(
    output: tuple[Storage, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the chaos suite: the first write succeeded without an answer, and the retry found the file changed."""
    storage, uri = output
    lease = leave(storage, uri, DEAD)
    replace_it = CasFile.replace

    def lose_the_answer(file: CasFile, payload: bytes, version: str) -> None:
        assert replace_it(file, payload, version) is not None

    monkeypatch.setattr(CasFile, "replace", lose_the_answer)
    assert clear_dead_lease(storage, uri, "night", clock=lambda: NOON)
    assert not storage.exists(lease)


def test_a_lease_that_another_command_replaced_stays(
    output: tuple[Storage, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uri = output
    lease = leave(storage, uri, DEAD)

    def lose_the_race(file: CasFile, payload: bytes, version: str) -> None:
        leave(storage, uri, replace(ALIVE, token="other"))

    monkeypatch.setattr(CasFile, "replace", lose_the_race)
    assert not clear_dead_lease(storage, uri, "night", clock=lambda: NOON)
    assert storage.exists(lease)


def test_without_a_lease_or_with_an_unreadable_one_nothing_is_removed(output: tuple[Storage, str]) -> None:
    storage, uri = output
    assert clear_dead_lease(storage, uri, "night")
    storage.write(f"{uri}/runs/night/lease.json", b"?")
    assert not clear_dead_lease(storage, uri, "night")
    assert storage.exists(f"{uri}/runs/night/lease.json")


def spec_in(folder: Path) -> JobSpec:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "a.jpg").touch()
    return load_spec(
        None,
        {
            "input.uri": str(folder / "in"),
            "output.uri": str(folder / "out"),
            "model.preset": "htc_lite0_fpn",
            "model.weights": "untrained",
        },
    )


def opened(spec: JobSpec) -> RunHandle:
    storage = Storage()
    return open_run(spec, {}, storage, take_lease=lambda name: take_lease(storage, spec.output.uri, name))


def test_a_run_that_was_never_begun_leaves_no_folder(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    leave(Storage(), spec.output.uri, DEAD)
    run = opened(spec)
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == [run.name] != ["night"]
    run.close()


def test_the_lease_of_a_run_that_is_being_begun_is_kept(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    leave(Storage(), spec.output.uri, replace(ALIVE, beat=datetime.now(UTC).isoformat()))
    opened(spec).close()
    assert (tmp_path / "out" / "runs" / "night" / "lease.json").exists()


def test_the_lease_of_a_dead_driver_of_a_complete_run_is_removed(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    begun = opened(spec)
    begun.close()
    part = tmp_path / "out" / "images" / f"run={begun.name}" / "part-00000.parquet"
    part.parent.mkdir(parents=True)
    part.touch()
    lease = tmp_path / "out" / "runs" / begun.name / "lease.json"
    lease.write_bytes(DEAD.encode())
    run = opened(spec)
    assert run.state == "complete"
    assert not lease.exists()
