"""What an input is: loose images, a glob, tar shards, Parquet shards, or a listing of any of them.

Order is part of the answer: storage is listed by uri, containers and listings keep their own order, so that
the same input gives the same manifest everywhere. Everything streams; nothing here holds all images of an
input.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from pipeline.config import InputSection
from pipeline.errors import InputError, NotFoundError, WebHostError
from pipeline.image_formats import IMAGE_SUFFIXES
from pipeline.listing_files import LISTING_SUFFIXES, URI_COLUMNS, read_listing
from pipeline.parquet_images import find_image_column, find_uri_column, inspect_parquet, read_uris
from pipeline.planned import Planned
from pipeline.refs import ImageRef, image_id, row_uri, tar_uri
from pipeline.storage import Listed, Storage, join
from pipeline.tar_files import REFUSED_SUFFIXES, DamagedContainerError, index_tar
from pipeline.uris import base_name, first_magic, folder_of, resolve, suffix_of

__all__ = ["ImageRef", "SourceNotes", "list_images", "locate_image"]

_CONTAINER_SUFFIXES = frozenset({".tar", ".parquet"})
_ROW_URI = re.compile(r"(?P<container>.+)#row=(?P<row>\d+)", re.DOTALL)


@dataclass
class SourceNotes:
    """What listing left out, to be said to the user.

    duplicates: entries of a listing that named an image again. skipped: files that are no images, by
        extension.
    """

    duplicates: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def list_images(
    section: InputSection,
    storage: Storage,
    *,
    exclude: Iterable[str] = (),
    notes: SourceNotes | None = None,
    planned: Planned | None = None,
) -> Iterator[ImageRef]:
    """List an input's images, in a fixed order, at most `section.limit`.

    Args:
        exclude: folders whose files are not input even when they lie inside it (the run's own output).
        notes: filled while the iterator is consumed.
        planned: images to go on behind; `notes` are then those that were taken while they were listed.

    Raises:
        InputError: the input is not there, or is of a kind that cannot be read.
        StorageError: it cannot be listed.
    """
    folders = tuple(join(folder, "") for folder in exclude)
    listing = _Listing(storage, folders, notes if notes is not None else SourceNotes(), planned)
    limit = section.limit
    if limit is not None and planned is not None:
        limit = max(0, limit - planned.manifest.image_count)
    return islice(listing.images(section), limit)


def locate_image(uri: str, storage: Storage) -> ImageRef:
    """Find an image again by the uri in the tables.

    Raises:
        NotFoundError: its file or container, or the container's member, is not there.
    """
    if uri.startswith("tar://"):
        # Names may hold "::" themselves, so every split is tried, the longest member first.
        body = uri.removeprefix("tar://")
        for split in [match.start() for match in re.finditer("::", body)][::-1]:
            member, container = body[:split], body[split + 2 :]
            if storage.kind(container) == "file":
                return _tar_member(uri, member, container, storage)
        raise NotFoundError(f"{uri} does not exist.")
    match = _ROW_URI.fullmatch(uri)
    if match and storage.kind(match["container"]) == "file":
        column = find_image_column(inspect_parquet(match["container"], storage)[0])
        return ImageRef(uri, container=match["container"], row=int(match["row"]), column=column)
    return ImageRef(uri)


def _tar_member(uri: str, name: str, container: str, storage: Storage) -> ImageRef:
    found: ImageRef | None = None
    try:
        for member in index_tar(container, storage):
            if member.name == name:
                found = ImageRef(uri, bytes=member.bytes, container=container, offset=member.offset)
    except DamagedContainerError as error:
        found = found or ImageRef(uri, container=container, problem=str(error))
    if found is None:
        raise NotFoundError(f"{uri} does not exist.")
    return found


@dataclass(frozen=True)
class _Listing:
    storage: Storage
    exclude: tuple[str, ...]
    notes: SourceNotes
    planned: Planned | None

    def images(self, section: InputSection) -> Iterator[ImageRef]:
        kind = self.storage.kind(section.uri)
        if kind == "file":
            if section.glob is not None:
                raise InputError(f"input.glob needs a folder, and {section.uri} is a file.")
            return self._from_file(section.uri)
        if kind == "folder":
            return self._from_folder(section.uri, section.glob)
        root, pattern = self._split_glob(section.uri)
        if pattern is None or section.glob is not None:
            raise InputError(f"The input {section.uri} does not exist.")
        return self._from_folder(root, pattern)

    def _split_glob(self, uri: str) -> tuple[str, str | None]:
        """Split an input with wildcards into a folder and a pattern.

        A part that exists as it stands is a name, not a pattern: folders called `set[1]` are common.
        """
        parts = uri.split("/")
        start = 0
        while (magic := first_magic(parts[start:])) is not None:
            end = start + magic + 1
            if end == len(parts) or self.storage.kind("/".join(parts[:end])) != "folder":
                return "/".join(parts[: end - 1]) or "/", "/".join(parts[end - 1 :])
            start = end
        return uri, None

    def _from_folder(self, root: str, pattern: str | None) -> Iterator[ImageRef]:
        for listed in self.storage.list(root, pattern, after=self.planned.place if self.planned else None):
            suffix = suffix_of(listed.uri)
            if listed.uri.startswith(self.exclude) or (self.planned and self.planned.is_behind(listed.uri)):
                continue
            if suffix in _CONTAINER_SUFFIXES:
                yield from self._unplanned(listed, is_only_input=False)
            elif self.planned and self.planned.is_last(listed.uri):
                continue
            elif suffix in IMAGE_SUFFIXES or (pattern is not None and not _is_refused(listed.uri)):
                # A pattern is taken at its word, because many buckets name images without an extension.
                yield ImageRef(listed.uri, listed.bytes, listed.etag)
            else:
                self.notes.skipped[suffix or "no extension"] += 1

    def _from_file(self, uri: str) -> Iterator[ImageRef]:
        suffix = suffix_of(uri)
        if _is_refused(uri):
            raise InputError(
                f"{base_name(uri)} cannot be read by ranges; unpack it, or repack it as a plain .tar "
                "(images are compressed already)."
            )
        if suffix in _CONTAINER_SUFFIXES:
            return self._unplanned(self.storage.stat(uri), is_only_input=True)
        if suffix in LISTING_SUFFIXES:
            return self._from_listing(read_listing(uri, self.storage), folder_of(uri))
        listed = self.storage.stat(uri)
        return iter([ImageRef(listed.uri, listed.bytes, listed.etag)])

    def _from_listing(self, entries: Iterable[str], folder: str) -> Iterator[ImageRef]:
        # Numbers of 8 bytes stand for the uris: a listing may name a hundred million images.
        seen: set[int] = set()
        planned: set[int] = set()
        if self.planned:
            # The whole listing is read again, and so are its notes.
            self.notes.duplicates, planned = 0, self.planned.all_numbers()
            self.notes.skipped.clear()
        for entry in entries:
            uri = resolve(entry, folder)
            refs = self._from_entry(uri) if suffix_of(uri) in _CONTAINER_SUFFIXES else iter([ImageRef(uri)])
            for ref in refs:
                number = image_id(ref.uri)
                if number in seen:
                    self.notes.duplicates += 1
                    continue
                seen.add(number)
                if number not in planned:
                    yield ref

    def _from_entry(self, uri: str) -> Iterator[ImageRef]:
        try:
            listed = self.storage.stat(uri)
        except NotFoundError:
            # Its row will say `missing`.
            return iter([ImageRef(uri)])
        except WebHostError as error:
            return iter([ImageRef(uri, container=uri, problem=str(error))])
        return self._from_container(listed, is_only_input=False)

    def _unplanned(self, listed: Listed, *, is_only_input: bool) -> Iterator[ImageRef]:
        """List a container's images but for those that were planned before."""
        if self.planned is None or not self.planned.is_last(listed.uri):
            return self._from_container(listed, is_only_input=is_only_input)
        numbers = self.planned.last_numbers
        # It was noted when it was listed first what of it is no image.
        again = replace(self, notes=SourceNotes())
        refs = again._from_container(listed, is_only_input=is_only_input)
        return (ref for ref in refs if image_id(ref.uri) not in numbers)

    def _from_container(self, listed: Listed, *, is_only_input: bool) -> Iterator[ImageRef]:
        """List a container's images; damage becomes one more row, or an error when there is nothing else."""
        has_images = False
        members = self._from_tar if suffix_of(listed.uri) == ".tar" else self._from_parquet
        try:
            for ref in members(listed, is_only_input=is_only_input):
                has_images = True
                yield ref
        except DamagedContainerError as error:
            if is_only_input and not has_images:
                raise InputError(f"{listed.uri} cannot be read: {error}.") from error
            yield ImageRef(listed.uri, listed.bytes, listed.etag, container=listed.uri, problem=str(error))

    def _from_tar(self, listed: Listed, *, is_only_input: bool) -> Iterator[ImageRef]:
        # In a tar that was appended to, the last member of a name is the one that counts; a dict keeps its
        # place.
        members: dict[str, ImageRef] = {}
        damage: DamagedContainerError | None = None
        try:
            for member in index_tar(listed.uri, self.storage):
                suffix = suffix_of(member.name)
                if suffix not in IMAGE_SUFFIXES or base_name(member.name).startswith("."):
                    self.notes.skipped[suffix or "no extension"] += 1
                    continue
                uri = tar_uri(member.name, listed.uri)
                members[uri] = ImageRef(uri, member.bytes, listed.etag, container=listed.uri, offset=member.offset)
        except DamagedContainerError as error:
            damage = error
        yield from members.values()
        if damage is not None:
            raise damage

    def _from_parquet(self, listed: Listed, *, is_only_input: bool) -> Iterator[ImageRef]:
        schema, rows = inspect_parquet(listed.uri, self.storage)
        column = find_image_column(schema)
        if column is not None:
            for row in range(rows):
                uri = row_uri(listed.uri, row)
                yield ImageRef(uri, None, listed.etag, container=listed.uri, row=row, column=column)
            return
        uri_column = find_uri_column(schema)
        if not is_only_input:
            # Metadata beside the images (Hugging Face's image folders have some), not a container.
            self.notes.skipped[".parquet without images"] += 1
        elif uri_column is not None:
            entries = read_uris(listed.uri, uri_column, self.storage)
            yield from self._from_listing(entries, folder_of(listed.uri))
        else:
            raise InputError(
                f"{listed.uri} has neither a column with image bytes nor one of the columns "
                f"{', '.join(URI_COLUMNS)}; its columns are {', '.join(schema.names)}."
            )


def _is_refused(uri: str) -> bool:
    return uri.lower().endswith(REFUSED_SUFFIXES)
