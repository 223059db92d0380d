"""Reads an image's encoded bytes from a file, a tar or a Parquet file, and reports which version was read.

A file that changed after the listing is read as it is now. In a tar that changed, the listed offset may point at other
bytes, perhaps another image's, so the tar is indexed again to find the member of that name.
"""

import atexit
import threading
from collections import OrderedDict

from pipeline.errors import ImageError, IncompleteReadError, NotFoundError, ObjectTooLargeError
from pipeline.inputs.containers.parquet import ParquetRows
from pipeline.inputs.containers.tar import TarMember, read_tar
from pipeline.inputs.image_ref import ImageRef, ReadVersion, member_name
from pipeline.storage.addresses import read_address
from pipeline.storage.objects import ObjectData, ObjectInfo
from pipeline.storage.storage import Storage
from pipeline.storage.uris import folder_of

# How often a tar may change between indexing it and reading from it.
ATTEMPTS = 3


def read_image(ref: ImageRef, storage: Storage, *, max_bytes: int | None = None) -> bytes:
    """Read an image's encoded bytes; see `fetch_image`."""
    return fetch_image(ref, storage, max_bytes=max_bytes)[0]


def fetch_image(ref: ImageRef, storage: Storage, *, max_bytes: int | None = None) -> tuple[bytes, ReadVersion]:
    """Read an image's encoded bytes as they are now, and their version.

    Args:
        max_bytes: refuse a larger file, before reading it where its size is known.

    Raises:
        NotFoundError: the file, its container or the container's member does not exist any more.
        ImageError: `unreadable` (its container is damaged) or `too_large`.
        StorageError: storage failed.
    """
    if ref.problem is not None:
        raise ImageError("unreadable", ref.problem)
    if ref.container is None:
        found = _read_loose(ref, storage, max_bytes)
    elif ref.row is not None:
        found = _read_row(ref, ref.container, ref.row, storage, max_bytes)
    else:
        found = _read_member(ref, ref.container, storage, max_bytes)
    _refuse_large(len(found.payload), max_bytes)
    is_known = found.etag is not None and ref.etag is not None
    is_changed = found.etag != ref.etag if is_known else None
    return found.payload, ReadVersion(len(found.payload), found.etag, is_changed)


def _read_loose(ref: ImageRef, storage: Storage, max_bytes: int | None) -> ObjectData:
    try:
        return storage.fetch(ref.uri, listed=ObjectInfo(ref.uri, ref.bytes, ref.etag), max_bytes=max_bytes)
    except ObjectTooLargeError as error:
        raise _too_large(error.bytes, max_bytes) from error


def _read_row(ref: ImageRef, container: str, row: int, storage: Storage, max_bytes: int | None) -> ObjectData:
    content = _parquet_rows.read(container, row, ref.column or "", storage, etag=ref.etag, max_bytes=max_bytes)
    if content.payload is not None:
        return ObjectData(content.payload, content.etag)
    if content.path is None:
        raise ImageError("unreadable", "the row holds no image bytes (null)")
    # A row of a Hugging Face data set holds the bytes, or the name of a file. The version is that of the Parquet file.
    address = read_address(content.path, folder_of(container))
    if address.problem is not None:
        raise ImageError(
            "unreadable", f"the row holds no image bytes (null), and its path cannot be used: {address.problem}"
        )
    if address.signed is not None:
        storage.signed.add({address.name: address.signed})
    return ObjectData(_read_loose(ImageRef(address.name), storage, max_bytes).payload, content.etag)


def _read_member(ref: ImageRef, container: str, storage: Storage, max_bytes: int | None) -> ObjectData:
    _refuse_large(ref.bytes, max_bytes)
    found = storage.fetch(container, ref.offset, ref.bytes)
    is_short = len(found.payload) != ref.bytes
    if ref.etag is None or (found.etag is None and not is_short):
        # No version to compare; only the length can be checked.
        _refuse_short(len(found.payload), ref.bytes, is_short=is_short)
        return found
    if found.etag == ref.etag:
        _refuse_short(len(found.payload), ref.bytes, is_short=is_short)
        return found
    return _find_member(ref, container, storage, max_bytes)


def _find_member(ref: ImageRef, container: str, storage: Storage, max_bytes: int | None) -> ObjectData:
    """Read a member from a tar that changed since it was listed."""
    for _ in range(ATTEMPTS):
        listed = storage.stat(container)
        member = _tar_indexes.find(listed, member_name(ref.uri, container), storage)
        if member is None:
            raise NotFoundError(f"{ref.uri} does not exist any more.")
        if member.problem is not None:
            raise ImageError("unreadable", member.problem)
        _refuse_large(member.bytes, max_bytes)
        found = storage.fetch(container, member.offset, member.bytes)
        if found.etag == listed.etag:
            is_short = len(found.payload) != member.bytes
            _refuse_short(len(found.payload), member.bytes, is_short=is_short)
            return found
    raise IncompleteReadError(f"{container} is being written to while it is read.")


def _refuse_short(here: int, expected: int | None, *, is_short: bool) -> None:
    if is_short:
        raise ImageError("unreadable", f"the tar ends inside it: {here} of {expected} bytes are there")


def _refuse_large(size: int | None, max_bytes: int | None) -> None:
    if size is not None and max_bytes is not None and size > max_bytes:
        raise _too_large(size, max_bytes)


def _too_large(size: int, max_bytes: int | None) -> ImageError:
    return ImageError("too_large", f"{size} bytes encoded, more than images.max_bytes = {max_bytes}")


class TarIndexes:
    """Indexes of tars that changed after they were listed; the two most recently used ones are kept.

    The images of a shard are mostly in one tar, so one index serves hundreds of them.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        self._indexes: OrderedDict[tuple[str, str | None], dict[str, TarMember]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, listed: ObjectInfo, name: str, storage: Storage) -> TarMember | None:
        """Return the last member of a name in a tar of this version.

        Raises:
            ImageError: the tar is damaged before its first member.
            StorageError: it cannot be read.
        """
        key = (listed.uri, listed.etag)
        with self._lock:
            if key not in self._indexes:
                while len(self._indexes) >= self._kept:
                    self._indexes.popitem(last=False)
                self._indexes[key] = _index(listed.uri, storage)
            self._indexes.move_to_end(key)
            return self._indexes[key].get(name)


def _index(container: str, storage: Storage) -> dict[str, TarMember]:
    index = read_tar(container, storage, lambda _: True)
    if index.damage is not None and not index.members:
        raise ImageError("unreadable", str(index.damage)) from index.damage
    return index.members


# One of each per process, as its reading threads work on neighbouring images.
_parquet_rows = ParquetRows()
atexit.register(_parquet_rows.close)
_tar_indexes = TarIndexes()
