"""Signed URLs by the names of their images, kept in this process only and never written into the output.

A listing may hold millions of signed URLs of a few hundred characters each, so they are kept in a temporary SQLite
database: a file that is unlinked as soon as it is opened, and ends with the process.
"""

import sqlite3
import threading
from collections.abc import Iterable, Mapping

# SQLite allows 32,766 values in a statement since 3.32; this many are fast enough.
_MOST_NAMES = 500


class SignedAddresses:
    """The signed addresses of images and containers by name; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def __bool__(self) -> bool:
        return self._database is not None

    def add(self, addresses: Mapping[str, str]) -> None:
        """Add addresses by name; a newer one replaces an older."""
        if not addresses:
            return
        with self._lock:
            if self._database is None:
                # The empty name is SQLite's for a private file on disk, deleted when it is closed.
                self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
                self._database.execute("PRAGMA synchronous = OFF")
                self._database.execute("CREATE TABLE signed (name BLOB PRIMARY KEY, address BLOB) WITHOUT ROWID")
            rows = [(_bytes(name), _bytes(address)) for name, address in addresses.items()]
            self._database.executemany("INSERT OR REPLACE INTO signed VALUES (?, ?)", rows)

    def find(self, name: str) -> str | None:
        """Return the signed address of a name, None when it has none."""
        return self.find_all([name]).get(name) if self._database is not None else None

    def find_all(self, names: Iterable[str]) -> dict[str, str]:
        """Return the signed addresses of the names that have one."""
        if self._database is None:
            return {}
        wanted = [_bytes(name) for name in dict.fromkeys(names)]
        found: dict[str, str] = {}
        for start in range(0, len(wanted), _MOST_NAMES):
            some = wanted[start : start + _MOST_NAMES]
            placeholders = ",".join("?" * len(some))
            with self._lock:
                # The text holds placeholders only.
                rows = self._database.execute(
                    f"SELECT name, address FROM signed WHERE name IN ({placeholders})",  # noqa: S608  # nosec B608
                    some,
                ).fetchall()
            found |= {_text(name): _text(address) for name, address in rows}
        return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
