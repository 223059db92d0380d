"""The lease: one driver at a time, also after deaths and with wrong clocks, on every kind of storage."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.errors import InputError, RunError, StorageError
from pipeline.job_spec.job import load_spec
from pipeline.runs import lease as leases
from pipeline.runs.lease import Lease, LeaseHolder, RunHeldError, take_lease
from pipeline.runs.open import open_run
from pipeline.runs.process_id import identify_process
from pipeline.runs.run import RunHandle
from pipeline.storage.cas_file import CasFile
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.worker.commit_claim import ORPHANED_BY_S, DriverLiveness
from tests.support.fakes.clock import HandClock

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOLDER = LeaseHolder("t", "far-away", 4711, "", NOON.isoformat(), NOON.isoformat())
SCRIPT = """
import sys, time
from pipeline.runs.lease import take_lease
from pipeline.storage.storage import Storage
take_lease(Storage(), sys.argv[1], "night")
print("held", flush=True)
time.sleep(600)
"""


def lease_uri(uri: str) -> str:
    return f"{uri}/runs/night/lease.json"


def leave(storage: Storage, uri: str, **values: object) -> None:
    """Write the lease of a driver on another machine."""
    storage.write(lease_uri(uri), replace(HOLDER, **values).encode())  # type: ignore[arg-type]


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def never(seconds: float) -> None:
    pytest.fail(f"waited {seconds} s")


def test_the_file_is_created_once_and_replaced_only_at_the_version_that_was_read(output: tuple[Storage, str]) -> None:
    storage, uri = output
    file = CasFile(storage, lease_uri(uri))
    assert file.read() is None
    assert file.replace(b"x", "0" * 32) is None
    first = file.create(b"one")
    assert first is not None
    assert file.create(b"two") is None
    seen = file.read()
    assert seen is not None
    assert (seen.payload, seen.version) == (b"one", first)
    second = file.replace(b"two", first)
    assert second is not None
    assert file.replace(b"three", first) is None
    assert file.replace(b"three", second) is not None
    file.delete()
    file.delete()
    assert file.read() is None


def test_a_second_driver_is_refused_until_the_first_releases_the_lease(output: tuple[Storage, str]) -> None:
    storage, uri = output
    first = take_lease(storage, uri, "night", sleep=never)
    with pytest.raises(RunHeldError) as caught:
        take_lease(storage, uri, "night", sleep=never)
    words = str(caught.value)
    assert f"host {socket.gethostname()}, process {os.getpid()}" in words
    assert "working on the run night since " in words
    assert " s ago; wait for it, stop it, or start another run with --fresh" in words
    assert caught.value.exit_code == 1
    take_lease(storage, uri, "other", sleep=never).release()
    first.release()
    take_lease(storage, uri, "night", sleep=never).release()
    assert not storage.exists(lease_uri(uri))


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def test_of_many_drivers_that_start_at_once_one_takes_the_lease(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    section, uri = StorageSection(), str(tmp_path / "out")
    if kind == "s3":
        section = StorageSection(endpoint_url=request.getfixturevalue("s3_server").endpoint_url)
        uri = request.getfixturevalue("s3_bucket")
    drivers = 8
    leave(Storage(section), uri)
    together = Barrier(drivers)

    def start(_: int) -> Lease | None:
        storage = Storage(section)
        together.wait()
        try:
            # The lease is old: all of them watch it and try to take it over.
            return take_lease(storage, uri, "night", sleep=lambda _: None, clock=lambda: at(900))
        except RunHeldError:
            return None

    with ThreadPoolExecutor(drivers) as pool:
        won = [lease for lease in pool.map(start, range(drivers)) if lease is not None]
    assert len(won) == 1
    won[0].check()
    won[0].release()


def test_the_lease_of_a_dead_driver_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "held\n"
        with pytest.raises(RunHeldError, match=f"process {driver.pid}"):
            take_lease(Storage(), str(tmp_path), "night", sleep=never)
        driver.send_signal(signal.SIGKILL)
        # Not waited for yet: a zombie counts as dead.
        reported: list[str] = []
        while not reported:
            try:
                take_lease(Storage(), str(tmp_path), "night", report=reported.append, sleep=never).release()
            except RunHeldError:
                continue
    assert f"process {driver.pid}) is dead" in reported[0]


def test_a_reused_process_number_does_not_keep_the_lease(tmp_path: Path) -> None:
    boot, pid, started = identify_process().rsplit(" ", 2)
    same_number = f"{boot} {pid} {int(started) - 1}"
    leave(Storage(), str(tmp_path), host=socket.gethostname(), process=same_number)
    take_lease(Storage(), str(tmp_path), "night", sleep=never, clock=lambda: at(1)).release()


@pytest.mark.parametrize("process", ["", "another-boot pid:[1] 99 1", "nonsense"])
def test_a_process_that_cannot_be_judged_from_here_counts_as_alive(tmp_path: Path, process: str) -> None:
    leave(Storage(), str(tmp_path), host=socket.gethostname(), process=process)

    def beat(seconds: float) -> None:
        leave(Storage(), str(tmp_path), host=socket.gethostname(), process=process, beats=1)

    with pytest.raises(RunHeldError, match="heartbeat 0 s ago"):
        take_lease(Storage(), str(tmp_path), "night", sleep=beat, clock=lambda: at(1))


@pytest.mark.parametrize("beat_s", [0.0, 119.0, 3e8, -3e8], ids=["now", "lately", "in ten years", "ten years ago"])
def test_a_driver_without_heartbeats_loses_the_run_after_it_was_watched(
    output: tuple[Storage, str], beat_s: float
) -> None:
    """Whatever its clock said: a heartbeat in the future once locked a run until that date."""
    storage, uri = output
    leave(storage, uri, beat=at(beat_s).isoformat(), since=at(beat_s).isoformat())
    waits: list[float] = []
    reported: list[str] = []
    take_lease(storage, uri, "night", sleep=waits.append, clock=lambda: at(0), report=reported.append).release()
    assert sum(waits) == leases.WATCH_S
    assert "far-away" in reported[0]


def test_the_periods_are_consistent() -> None:
    # The holder, and workers that it cannot reach, have ended before another driver begins.
    assert leases.WATCH_S - leases.STALE_AFTER_S >= leases.HEARTBEAT_EVERY_S
    assert leases.WATCH_S - ORPHANED_BY_S >= leases.HEARTBEAT_EVERY_S
    assert leases.SHORT_WATCH_S > leases.HEARTBEAT_EVERY_S
    assert DriverLiveness(3600.0)._limit_s == ORPHANED_BY_S


def test_the_file_changes_with_each_heartbeat_also_when_the_clock_stands_still(tmp_path: Path) -> None:
    mine = take_lease(Storage(), str(tmp_path), "night", sleep=never, clock=lambda: NOON)
    seen = [Storage().read(lease_uri(str(tmp_path)))]
    for _ in range(3):
        mine.renew()
        seen.append(Storage().read(lease_uri(str(tmp_path))))
    assert len(set(seen)) == 4
    mine.release()


def test_a_hung_driver_of_this_machine_is_watched_too(tmp_path: Path) -> None:
    """Its process runs, but its heartbeats have stopped; its clock has been set back since."""
    leave(Storage(), str(tmp_path), host=socket.gethostname(), process=identify_process())
    with pytest.raises(RunHeldError, match=f"host {socket.gethostname()}"):
        take_lease(Storage(), str(tmp_path), "night", sleep=never, clock=lambda: at(100))
    for moment in (121, -1):
        leave(Storage(), str(tmp_path), host=socket.gethostname(), process=identify_process())
        waits: list[float] = []
        take_lease(
            Storage(),
            str(tmp_path),
            "night",
            sleep=waits.append,
            clock=lambda moment=moment: at(moment),  # type: ignore[misc]
        ).release()
        assert sum(waits) == leases.WATCH_S


def test_a_lease_released_while_it_is_watched_is_taken(output: tuple[Storage, str]) -> None:
    storage, uri = output
    leave(storage, uri)
    take_lease(storage, uri, "night", sleep=lambda _: storage.delete(lease_uri(uri))).release()


def test_a_driver_whose_clock_is_behind_keeps_the_run_while_it_renews_its_lease(output: tuple[Storage, str]) -> None:
    storage, uri = output
    leave(storage, uri)
    with pytest.raises(RunHeldError, match="far-away"):
        take_lease(
            storage, uri, "night", clock=lambda: at(9999), sleep=lambda _: leave(storage, uri, beat=at(15).isoformat())
        )


def test_a_driver_whose_lease_was_taken_over_stops_and_leaves_the_new_lease(output: tuple[Storage, str]) -> None:
    storage, uri = output
    mine = take_lease(storage, uri, "night", sleep=never)
    mine.renew()
    mine.check()
    leave(storage, uri)
    mine.renew()
    with pytest.raises(RunError, match=r"host far-away, process 4711\) has taken the run over"):
        mine.check()
    mine.release()
    assert b"far-away" in storage.read(lease_uri(uri))


class Unwritable(Storage):
    """A store that fails while `is_away`."""

    is_away = False

    def read(self, uri: str, offset: int | None = None, length: int | None = None) -> bytes:
        if self.is_away:
            raise StorageError("the store is away")
        return super().read(uri, offset, length)


def test_a_store_that_fails_for_too_long_costs_the_lease(tmp_path: Path) -> None:
    storage, clock = Unwritable(), HandClock()
    mine = take_lease(storage, str(tmp_path), "night", sleep=never, seconds=clock)
    storage.is_away = True
    clock.now += leases.STALE_AFTER_S
    mine.renew()
    mine.check()
    clock.now += 1
    with pytest.raises(RunError, match="could not be renewed for"):
        mine.check()
    storage.is_away = False
    mine.release()


def test_a_suspended_driver_keeps_the_run_unless_another_took_it(tmp_path: Path) -> None:
    """A laptop was closed: the first commit afterwards renews the lease first."""
    clock = HandClock()
    mine = take_lease(Storage(), str(tmp_path), "night", sleep=never, seconds=clock)
    clock.now += 8 * 3600
    before = Storage().read(lease_uri(str(tmp_path)))
    mine.check()
    assert Storage().read(lease_uri(str(tmp_path))) != before
    clock.now += 8 * 3600
    leave(Storage(), str(tmp_path))
    with pytest.raises(RunError, match="taken the run over"):
        mine.check()


def test_the_time_of_a_suspended_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`time.monotonic` stands still meanwhile."""
    asked: list[int] = []
    monkeypatch.setattr("time.clock_gettime", lambda clock: float(asked.append(clock) or 7))
    assert leases.awake_and_asleep_s() == 7
    assert asked == [time.CLOCK_BOOTTIME]


def test_a_lease_that_could_not_be_renewed_is_lost_after_a_suspend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that another write preceded once counted neither as a renewal nor as a loss."""
    clock = HandClock()
    mine = take_lease(Storage(), str(tmp_path), "night", sleep=never, seconds=clock)
    monkeypatch.setattr(CasFile, "replace", lambda *_: None)
    clock.now += leases.STALE_AFTER_S
    mine.check()
    clock.now += 1
    with pytest.raises(RunError, match="could not be renewed for"):
        mine.check()


def test_the_lease_is_renewed_in_the_background(tmp_path: Path) -> None:
    mine = take_lease(Storage(), str(tmp_path), "night", sleep=never, heartbeat_every_s=0.01)
    first = Storage().read(lease_uri(str(tmp_path)))
    while Storage().read(lease_uri(str(tmp_path))) == first:
        pass
    mine.release()
    assert not Path(lease_uri(str(tmp_path))).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"beat": 3}'])
def test_an_unreadable_lease_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    Storage().write(lease_uri(str(tmp_path)), content)
    with pytest.raises(RunHeldError, match=r"lease\.json cannot be read as a lease.*htc doctor .*--repair"):
        take_lease(Storage(), str(tmp_path), "night", sleep=never)


def begin(tmp_path: Path, leases_taken: list[Lease] | None = None) -> RunHandle:
    """Open the run; `leases_taken` gets its lease."""
    values = {"input.uri": str(tmp_path / "in"), "output.uri": str(tmp_path / "out"), "model.weights": "untrained"}
    storage = Storage()

    def take(name: str) -> Lease:
        lease = take_lease(storage, str(tmp_path / "out"), name, sleep=never)
        if leases_taken is not None:
            leases_taken.append(lease)
        return lease

    return open_run(load_spec(None, values), {"weights_sha256": "a"}, storage, run="night", take_lease=take)


def test_a_run_is_leased_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").touch()
    run = begin(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(RunHeldError):
        begin(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    run.close()
    again = begin(tmp_path)
    assert again.state == "resumed"
    again.close()
    assert sorted(path.name for path in (tmp_path / "out/runs/night").iterdir()) == ["manifest", "run.json"]


def test_a_run_that_was_taken_over_hands_out_nothing_and_writes_no_summary(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").touch()
    leases_taken: list[Lease] = []
    run = begin(tmp_path, leases_taken)
    leave(Storage(), str(tmp_path / "out"))
    leases_taken[0].renew()
    with pytest.raises(RunError, match="taken the run over"):
        run.take_new_shards()
    with pytest.raises(StorageError, match="taken the run over"):
        run.write_summary({"status": "interrupted"})
    run.close()
    assert {path.name for path in (tmp_path / "out/runs/night").iterdir()} == {"lease.json", "manifest", "run.json"}


def test_a_run_that_cannot_begin_releases_its_lease(tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(b"no tar" * 200)
    values = {"input.uri": str(tmp_path / "in.tar"), "output.uri": str(tmp_path / "out")}
    storage = Storage()
    with pytest.raises(InputError, match="cannot be read"):
        open_run(
            load_spec(None, values),
            {},
            storage,
            run="night",
            take_lease=lambda name: take_lease(storage, values["output.uri"], name),
        )
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
