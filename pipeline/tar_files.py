"""Tar shards: where each image lies, so that reading one is a single range read."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import HtcError
from pipeline.storage import Storage

REFUSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
"""Archives whose members cannot be read by a range: a compressed tar must be unpacked from its start."""

_BLOCK_BYTES = 512


class DamagedContainerError(HtcError):
    """A container ends early or is not what its name says; what was found before stands."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file of a tar: its name as stored, and where its bytes lie."""

    name: str
    offset: int
    bytes: int


def index_tar(uri: str, storage: Storage) -> Iterator[TarMember]:
    """List the regular files of an uncompressed tar, in its order.

    Raises:
        DamagedContainerError: after the members that are whole enough to be named.
    """
    try:
        with storage.reading(uri) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # TarFile remembers every member; a tar of a million images would fill the memory.
                tar.members = []  # type: ignore[attr-defined]
                if member.isreg() and not member.issparse():
                    yield TarMember(member.name, member.offset_data, member.size)
            # At a header it cannot read, TarFile stops as if the archive ended there.
            file.seek(tar.offset)
            if file.read(_BLOCK_BYTES).strip(b"\0"):
                raise DamagedContainerError(f"the tar is damaged at byte {tar.offset}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DamagedContainerError(f"it is not a whole, uncompressed tar ({error})") from error
