"""The database of schedules, firings and notifications: one SQLite file, written in transactions.

Each decision is stored before the scheduler acts on it, so that another scheduler can continue after a crash at any
instant. Times are seconds since 1970, UTC.
"""

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from jobs.scheduling.firing import Firing
from jobs.scheduling.schedule import Event, Schedule
from jobs.scheduling.serialization import COLUMNS, document_of, firing_of, schedule_of, time_of, values_of
from pipeline.errors import SpecError
from pipeline.text import message_of

log = logging.getLogger(__name__)

VERSION = 1
# What reading a damaged row raises: invalid JSON, wrong keys or types, a time out of range.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, OSError, RecursionError)
# How long a command waits for another command's transaction, which takes milliseconds.
_BUSY_S = 30.0
_TABLES = """
CREATE TABLE IF NOT EXISTS schedules (
    name TEXT PRIMARY KEY, document TEXT NOT NULL, added REAL NOT NULL, decided_until REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS firings (
    name TEXT PRIMARY KEY, schedule TEXT NOT NULL, document TEXT NOT NULL, scheduled REAL NOT NULL,
    begins REAL NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, handle TEXT, starts INTEGER NOT NULL,
    is_late INTEGER NOT NULL, stop_outcome TEXT, stop_asked REAL, reason TEXT NOT NULL, begun REAL, ended REAL,
    outcome TEXT, exit_code INTEGER, counts TEXT, is_stop_wanted INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS firings_by_state ON firings (state) WHERE state <> 'ended';
CREATE INDEX IF NOT EXISTS firings_by_schedule ON firings (schedule, scheduled);
CREATE TABLE IF NOT EXISTS notices (
    number INTEGER PRIMARY KEY, firing TEXT NOT NULL, event TEXT NOT NULL, channel TEXT NOT NULL,
    reason TEXT NOT NULL, state TEXT NOT NULL, problem TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS notices_by_state ON notices (state) WHERE state = 'open';
"""
# Queries are built from constants of this file and of serialization.py only; values are bound.
Channel = Literal["webhook", "apprise", "hook"]


class StoreDamagedError(SpecError):
    """The database as a whole cannot be read or written, so no schedule can be processed."""


@dataclass(frozen=True)
class StoredSchedule:
    """A schedule, and the time up to which its firings have been decided."""

    schedule: Schedule
    decided_until: datetime


@dataclass(frozen=True)
class Notification:
    """A notification to deliver; `problem` says why it could not be delivered."""

    number: int
    firing: Firing
    event: Event
    channel: Channel
    reason: str
    problem: str = ""


class ScheduleStore:
    """The database in a state folder; for use in one thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "schedules.sqlite"
        self._damaged: set[tuple[str, object]] = set()
        try:
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            # Bytes that are not valid text damage their row only, not the query.
            self._connection.text_factory = lambda text: text.decode(errors="replace")
            self._prepare()
        except sqlite3.Error as error:
            raise self._damage(error) from None

    def _damage(self, error: sqlite3.Error) -> StoreDamagedError:
        return StoreDamagedError(
            f"The schedules in {self.path} cannot be read or written: {error}; restore a copy, or move the file away "
            "to begin without schedules."
        )

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._damage(error) from None

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._damage(error) from None

    def _note_damage(self, kind: str, name: object, error: Exception) -> None:
        """Log once that a row cannot be read; it is treated as missing."""
        if (kind, name) not in self._damaged:
            self._damaged.add((kind, name))
            reason = message_of(error, max_chars=200)
            log.error("the %s %s in %s is damaged, and is treated as missing: %s", kind, name, self.path, reason)

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may lose the last decisions; they are made again, and no run starts twice.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise SpecError(f"The schedules in {self.path} were written by a newer htc; install that one.")
        if version < VERSION:
            self._connection.executescript(_TABLES)
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def schedules(self) -> list[StoredSchedule]:
        """Return all schedules, by name."""
        found = []
        for row in self._rows("SELECT name, document, decided_until FROM schedules ORDER BY name"):
            try:
                found.append(StoredSchedule(schedule_of(row["document"]), time_of(row["decided_until"])))
            except DAMAGE as error:
                self._note_damage("schedule", row["name"], error)
        return found

    def find(self, name: str) -> Schedule | None:
        """Return one schedule."""
        stored = [each.schedule for each in self.schedules() if each.schedule.name == name]
        return stored[0] if stored else None

    def has(self, name: str) -> bool:
        """Return whether there is a schedule of this name, readable or not."""
        return bool(self._rows("SELECT 1 FROM schedules WHERE name = ?", [name]))

    def put(self, schedule: Schedule, now: datetime) -> None:
        """Store a new or changed schedule; its firings count from now on."""
        self._execute(
            "INSERT INTO schedules (name, document, added, decided_until) VALUES (?1, ?2, ?3, ?3) "
            "ON CONFLICT (name) DO UPDATE SET document = ?2, decided_until = ?3",
            [schedule.name, document_of(schedule), now.timestamp()],
        )

    def remove(self, name: str) -> None:
        """Remove a schedule; its firings stay in the history."""
        self._execute("DELETE FROM schedules WHERE name = ?", [name])

    def decide(self, name: str, until: datetime, firings: Iterable[tuple[Firing, Event | None]]) -> None:
        """Store the decisions about a schedule's firings up to a time; firings that exist stay as they are."""
        with self._transaction():
            for firing, event in firings:
                if self._insert(firing):
                    self._add_notifications(firing, event)
            self._execute("UPDATE schedules SET decided_until = ? WHERE name = ?", [until.timestamp(), name])

    def insert(self, firing: Firing) -> bool:
        """Add one firing; return False if it exists already."""
        return self._insert(firing)

    def update(self, firing: Firing, *, event: Event | None = None) -> None:
        """Store a firing's new state, and with an event its notifications."""
        values = values_of(firing)
        sets = ", ".join(f"{column} = ?" for column in COLUMNS.split(", "))
        with self._transaction():
            self._execute(f"UPDATE firings SET {sets} WHERE name = ?", [*values, firing.name])  # noqa: S608  # nosec B608
            self._add_notifications(firing, event)

    def firing(self, name: str) -> Firing | None:
        """Return one firing."""
        found = self._firings("name = ?", [name])
        return found[0] if found else None

    def open_firings(self) -> list[Firing]:
        """Return the firings that have not ended, in the order in which they may begin."""
        return self._firings("state <> 'ended' ORDER BY begins, name")

    def ask_to_stop(self, schedule: str) -> list[str]:
        """Ask the scheduler to stop a schedule's firings that have not ended; returns their names."""
        # A column that only commands write, so that the scheduler's writes cannot undo it.
        rows = self._rows(
            "UPDATE firings SET is_stop_wanted = 1 WHERE schedule = ? AND state <> 'ended' RETURNING name", [schedule]
        )
        return sorted(row["name"] for row in rows)

    def stops_wanted(self) -> list[Firing]:
        """Return the firings that a command asked to stop and that the scheduler has not stopped yet."""
        return self._firings("state <> 'ended' AND is_stop_wanted AND stop_outcome IS NULL ORDER BY begins")

    def history(self, schedule: str | None, limit: int) -> list[Firing]:
        """Return the newest firings, of one schedule or of all, newest first."""
        where = "schedule = ?1" if schedule else "?1 IS NULL"
        return self._firings(f"{where} ORDER BY scheduled DESC, name LIMIT ?2", [schedule, limit])

    def forget_all_but(self, newest: int) -> None:
        """Remove all but the newest ended firings of each schedule, and their notifications."""
        with self._transaction():
            self._execute(
                "DELETE FROM firings WHERE state = 'ended' AND name NOT IN (SELECT name FROM ("
                "SELECT name, row_number() OVER (PARTITION BY schedule ORDER BY scheduled DESC) AS age FROM firings"
                ") WHERE age <= ?)",
                [newest],
            )
            self._execute("DELETE FROM notices WHERE firing NOT IN (SELECT name FROM firings)")

    def open_notifications(self) -> list[Notification]:
        """Return the notifications that are not delivered yet, oldest first."""
        return self._notifications("state = 'open' ORDER BY number")

    def failed_notifications(self, firing: str) -> list[Notification]:
        """Return the notifications about a firing that could not be delivered."""
        return self._notifications("state = 'failed' AND firing = ? ORDER BY number", [firing])

    def close_notification(self, notification: Notification) -> None:
        """Record that a notification was delivered or, with its `problem`, that it could not be."""
        state = "failed" if notification.problem else "sent"
        self._execute(
            "UPDATE notices SET state = ?, problem = ? WHERE number = ?",
            [state, notification.problem, notification.number],
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            with self._connection:
                yield
        except sqlite3.Error as error:
            raise self._damage(error) from None

    def _insert(self, firing: Firing) -> bool:
        values = values_of(firing)
        places = ", ".join("?" * len(values))
        done = self._execute(f"INSERT OR IGNORE INTO firings ({COLUMNS}) VALUES ({places})", values)  # noqa: S608  # nosec B608
        return done.rowcount == 1

    def _add_notifications(self, firing: Firing, event: Event | None) -> None:
        notify = firing.schedule.notify
        if event is None or event not in notify.events:
            return
        reason = firing.ending.reason if firing.ending else firing.reason
        channels: list[Channel] = ["webhook"] if notify.has_url("webhook") else []
        channels += ["apprise"] if notify.has_url("apprise") else []
        channels += ["hook"] if notify.exit_hook else []
        for channel in channels:
            self._execute(
                "INSERT INTO notices (firing, event, channel, reason, state, problem) VALUES (?, ?, ?, ?, 'open', '')",
                [firing.name, event, channel, reason],
            )

    def _firings(self, where: str, values: Sequence[object] = ()) -> list[Firing]:
        found = []
        for row in self._rows(f"SELECT {COLUMNS} FROM firings WHERE {where}", values):  # noqa: S608  # nosec B608
            try:
                found.append(firing_of(row))
            except DAMAGE as error:
                self._note_damage("firing", row["name"], error)
        return found

    def _notifications(self, where: str, values: Sequence[object] = ()) -> list[Notification]:
        rows = self._rows(f"SELECT * FROM notices WHERE {where}", values)  # noqa: S608  # nosec B608
        found = []
        for row in rows:
            firing = self.firing(row["firing"])
            if row["event"] not in get_args(Event) or row["channel"] not in get_args(Channel):
                self._note_damage("notification", row["number"], ValueError(f"its event is {row['event']!r}"))
            elif firing is not None:
                found.append(
                    Notification(row["number"], firing, row["event"], row["channel"], row["reason"], row["problem"])
                )
        return found
