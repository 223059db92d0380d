"""The committed parts of an output as files that DuckDB reads, locally and in every store, and nothing else.

A path is `htc-parts://TABLE/NUMBER/RUN/PART`; the numbers keep the order of runs and shards, because DuckDB sorts
paths. DuckDB asks for `htc-parts://TABLE/*` and gets the list of committed parts; no name in an output is taken as a
pattern, and a file that is not committed does not exist.
"""

import bisect
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import IncompleteReadError, NotFoundError
from pipeline.output.deletions import DELETIONS_SCHEMA, deletion_parts, deletions_folder
from pipeline.output.layout import TABLES, partition_folder
from pipeline.output.part_files import parquet_errors
from pipeline.output.parts import Part, parse_part
from pipeline.output.results import Results
from pipeline.output.schema import TABLE_SCHEMAS
from pipeline.storage.damage import damaged
from pipeline.storage.read_only_files import ReadableFile
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name, is_local, join, local_path

SCHEME = "htc-parts"
_ROOT = f"{SCHEME}://"
VIEW_SCHEMAS = {**TABLE_SCHEMAS, "deletions": DELETIONS_SCHEMA}
# The end of a stored part that is read at once, and kept: a part of one shard as a whole, and of a compacted one the
# footer, the page index and the Bloom filters, each of which would cost a request.
TAIL_BYTES = 1 << 20
TAILS_KEPT_BYTES = 64 << 20
# The length of the footer, and the magic number behind it (github.com/apache/parquet-format, "File Format").
_FOOTER_END_BYTES = 8
# The columns of every part, as a footer spells them: Thrift's compact protocol writes a text's length before it.
_REQUIRED = {
    table: [bytes([len(field.name)]) + field.name.encode() for field in schema if not field.nullable]
    for table, schema in VIEW_SCHEMAS.items()
}


class CommittedFiles:
    """The committed parts of an output, as they were listed when this object was made."""

    def __init__(self, results: Results) -> None:
        """Look up the parts.

        Raises:
            DamagedFileError: deletion records are missing.
        """
        self._is_local = is_local(results.output_uri)
        self._stored = _StoredParts(results.storage)
        self._folders: dict[str, dict[str, _Folder]] = {table: {} for table in TABLES}
        for run in results.runs():
            parts = results.committed(run)
            firsts = array("q", (part.first for part in parts))
            for table in results.tables(run):
                folder = partition_folder(results.output_uri, table, run)
                self._folders[table][run] = _Folder(join(folder, ""), firsts, parts)
            names = [base_name(uri) for uri in deletion_parts(results, run)]
            numbers = sorted(part for name in names if (part := parse_part(name)) is not None)
            folder = join(deletions_folder(results.output_uri, run), "")
            self._folders["deletions"][run] = _Folder(folder, array("q", (part.first for part in numbers)), numbers)
        # DuckDB asks for a file's size right after it has opened it, in the same thread.
        self._opened = threading.local()

    def has_any(self, table: str) -> bool:
        """Return whether a table has parts."""
        return self.runs_of(table) > 0

    def runs_of(self, table: str) -> int:
        """Return how many runs have parts of a table."""
        return sum(bool(folder.parts) for folder in self._folders[table].values())

    def find(self, pattern: str) -> Sequence[str]:
        """Return the paths of a table's parts, in the order of run and shard, for `htc-parts://TABLE/*`; or a path."""
        table, _, rest = pattern.removeprefix(_ROOT).partition("/")
        if rest != "*":
            return [pattern] if self._uri(pattern) is not None else []
        named = ((run, part.name) for run, folder in self._folders.get(table, {}).items() for part in folder.parts)
        return [f"{_ROOT}{table}/{number:09d}/{run}/{name}" for number, (run, name) in enumerate(named)]

    def open(self, path: str) -> ReadableFile:
        """Open a part.

        Raises:
            NotFoundError: it is not committed, or compacted or pruned since it was listed.
            StorageError: storage failed.
        """
        uri = self._uri(path)
        if uri is None:
            raise NotFoundError(f"{path} does not exist.")
        required = _REQUIRED[path[len(_ROOT) : path.index("/", len(_ROOT))]]
        part = _LocalPart(uri, required) if self._is_local else _StoredPart(uri, required, self._stored)
        self._opened.last = path, part.size
        return part

    def size(self, path: str) -> int:
        """Return a part's size in bytes; errors as for `open`."""
        last, size = getattr(self._opened, "last", (None, 0))
        if last != path:
            self.open(path)
            _, size = self._opened.last
        return int(size)

    def _uri(self, path: str) -> str | None:
        """Return the uri of a path; None when it is not a committed part."""
        table, *places = path.removeprefix(_ROOT).split("/")
        if len(places) != len(("number", "run", "name")):
            return None
        _, run, name = places
        folder = self._folders.get(table, {}).get(run)
        return folder.uri_of(name) if folder is not None else None


@dataclass(frozen=True, slots=True)
class _Folder:
    """The parts of a run in a table.

    uri: with a slash at its end. firsts: each part's first shard, ascending.
    """

    uri: str
    firsts: "array[int]"
    parts: Sequence[Part]

    def uri_of(self, name: str) -> str | None:
        part = parse_part(name)
        if part is None:
            return None
        at = bisect.bisect_left(self.firsts, part.first)
        # A name has one spelling: not that of a part with more zeros.
        return self.uri + name if at < len(self.parts) and self.parts[at].name == name else None


class _OpenPart:
    """An open part: a position of each thread, and the check that the part is of its table.

    DuckDB's threads share an open file, and read a range by a call of `seek` and one of `read`. Between the two another
    thread may do the same, and with one position for all of them would get bytes from elsewhere.

    size: in bytes.
    """

    def __init__(self, uri: str, required: Sequence[bytes]) -> None:
        self._uri = uri
        self._required = required
        # By the thread's number; 0 for one that has not been here.
        self._positions: dict[int, int] = {}
        self.size = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}[whence]
        self._positions[threading.get_ident()] = position
        return position

    def tell(self) -> int:
        return self._positions.get(threading.get_ident(), 0)

    def read(self, length: int = -1) -> bytes:
        start = self.tell()
        end = self.size if length < 0 else min(start + length, self.size)
        payload = self._read(start, max(0, end - start))
        self._positions[threading.get_ident()] = start + len(payload)
        if end == self.size and len(payload) > _FOOTER_END_BYTES:
            self._check_footer(payload, start)
        return payload

    def seekable(self) -> bool:
        return True

    def _read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def _check_footer(self, payload: bytes, start: int) -> None:
        """Check that the footer names the columns that every part of the table has.

        DuckDB reads a missing column as null, as it must for columns that were added later, so a foreign file would
        count as empty rows.

        Raises:
            DamagedFileError: a column is missing.
        """
        length = int.from_bytes(payload[-_FOOTER_END_BYTES:-4], "little") + _FOOTER_END_BYTES
        if payload[-4:] != b"PAR1" or length > self.size:
            # DuckDB reports it.
            return
        footer = payload[-length:] if length <= self.size - start else self._read(self.size - length, length)
        for name in self._required:
            if name not in footer:
                raise damaged(self._uri, f"it has no column {name[1:].decode()}, so htc did not write it")


class _LocalPart(_OpenPart):
    def __init__(self, uri: str, required: Sequence[bytes]) -> None:
        super().__init__(uri, required)
        self._descriptor = -1
        try:
            self._descriptor = os.open(local_path(uri), os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._descriptor).st_size
        except OSError:
            with parquet_errors(uri):
                raise

    def __del__(self) -> None:
        # DuckDB drops a file without closing it.
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError:
            with parquet_errors(self._uri):
                raise


class _StoredPart(_OpenPart):
    def __init__(self, uri: str, required: Sequence[bytes], stored: "_StoredParts") -> None:
        super().__init__(uri, required)
        self._stored = stored
        self.size = stored.size(uri)

    def _read(self, offset: int, length: int) -> bytes:
        return self._stored.read(self._uri, offset, length)


class _StoredParts:
    """Reads parts in a store with few requests: sizes are asked for once, and the ends of parts are kept for a while.

    DuckDB opens a part once for its footer and once for its rows.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._tails: OrderedDict[str, tuple[int, str | None, bytes]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def size(self, uri: str) -> int:
        """Return a part's size in bytes."""
        size, _, _ = self._tail(uri)
        return size

    def read(self, uri: str, offset: int, length: int) -> bytes:
        """Read a range that lies within the part.

        Raises:
            IncompleteReadError: the part was replaced meanwhile.
            StorageError: storage failed.
        """
        size, version, tail = self._tail(uri)
        start = size - len(tail)
        if offset >= start:
            return tail[offset - start : offset - start + length]
        found = self._storage.fetch(uri, offset, length)
        if found.etag != version and None not in {found.etag, version}:
            # Parts of two versions together would look like a damaged file.
            raise IncompleteReadError(f"{uri} was replaced while it was read.")
        return found.payload

    def _tail(self, uri: str) -> tuple[int, str | None, bytes]:
        """Return a part's size in bytes, its version, and its last TAIL_BYTES."""
        with self._lock:
            if uri in self._tails:
                self._tails.move_to_end(uri)
                return self._tails[uri]
        info = self._storage.stat(uri)
        if info.bytes is None:
            whole = self._storage.fetch(uri)
            tail = (len(whole.payload), whole.etag, whole.payload)
        else:
            start = max(0, info.bytes - TAIL_BYTES)
            found = self._storage.fetch(uri, start, info.bytes - start)
            tail = (info.bytes, found.etag, found.payload)
        with self._lock:
            if uri not in self._tails:
                self._tails[uri] = tail
                self._kept_bytes += len(tail[2])
            while self._kept_bytes > TAILS_KEPT_BYTES and len(self._tails) > 1:
                self._kept_bytes -= len(self._tails.popitem(last=False)[1][2])
        return tail
