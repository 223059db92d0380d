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

from pipeline.errors import DamagedContainerError, InputError, NotFoundError, StorageError, TransientStorageError
from pipeline.inputs.containers.parquet_columns import choose_columns, require_columns
from pipeline.inputs.containers.parquet_file import read_uris
from pipeline.inputs.containers.tar import UNREADABLE_ARCHIVE, archive_suffix, read_tar
from pipeline.inputs.formats.detect import IMAGE_SUFFIXES
from pipeline.inputs.image_ref import ImageRef, image_id, row_uri, tar_uri
from pipeline.inputs.listings.entries import Entry
from pipeline.inputs.listings.read import is_listing, open_listing
from pipeline.inputs.listings.text import SAMPLE_BYTES, looks_like_text
from pipeline.inputs.resume import ListedBefore
from pipeline.job_spec.job import InputSection
from pipeline.redaction import redact
from pipeline.storage.addresses import read_address
from pipeline.storage.objects import ObjectInfo
from pipeline.storage.storage import Storage
from pipeline.storage.uris import (
    base_name,
    first_magic,
    folder_of,
    has_magic,
    is_local,
    join,
    local_path,
    scheme_of,
    suffix_of,
    without_query,
)

__all__ = ["ImageRef", "SourceNotes", "list_images", "locate_image"]

_CONTAINER_SUFFIXES = frozenset({".tar", ".parquet"})
MOST_NAMED = 5
"""Files that are left out and named; the others are only counted."""
_SHOWN_NAMES = 3
_LONGEST_SHOWN = 80
_LONGEST_REASON = 120
# Of a row of its own for an address that cannot be read; what is longer is named by its line.
_LONGEST_NAME = 2048
_ROW_URI = re.compile(r"(?P<container>.+)#row=(?P<row>\d+)", re.DOTALL)


@dataclass
class SourceNotes:
    """What listing understood and left out, to be said to the user.

    duplicates: entries of a listing, or members of a tar, that named an image again. skipped: files that are no
        images, by extension. refused: entries that cannot be read, each of which has its row, by kind.
    links: links to folders that were not entered, as their files are listed under other names; `link` is the first.
    listing: how the listing was read, with its first names. signed: images whose address has a signature.
    without_images: of Parquet files that were skipped, the first names with what they hold instead.
    columns: how many Parquet files were read by a column.
    """

    duplicates: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    links: int = 0
    link: str = ""
    listing: str = ""
    signed: int = 0
    without_images: dict[str, str] = field(default_factory=dict)
    columns: Counter[str] = field(default_factory=Counter)

    def note_without_images(self, uri: str, instead: str) -> None:
        """Note a Parquet file that is left out; the names of the first few are kept."""
        self.skipped[".parquet without images"] += 1
        if len(self.without_images) < MOST_NAMED:
            self.without_images[uri] = instead

    def note_link(self, link: str, folder: str) -> None:
        """Count a link to a folder that is listed elsewhere."""
        self.links += 1
        self.link = self.link or f"{link} -> {folder}"

    def clear(self) -> None:
        """Forget everything, as the whole input is listed again."""
        vars(self).update(vars(SourceNotes()))


def list_images(
    section: InputSection,
    storage: Storage,
    *,
    exclude: Iterable[str] = (),
    notes: SourceNotes | None = None,
    planned: ListedBefore | None = None,
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
    noted = notes if notes is not None else SourceNotes()
    listing = _Listing(storage, folders, noted, planned, section.image_column, section.uri_column)
    limit = section.limit
    if limit is not None and planned is not None:
        limit = max(0, limit - planned.image_count)
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
        column = choose_columns(storage.stat(match["container"]), storage).image
        return ImageRef(uri, container=match["container"], row=int(match["row"]), column=column)
    return ImageRef(uri)


def _tar_member(uri: str, name: str, container: str, storage: Storage) -> ImageRef:
    index = read_tar(container, storage, lambda each: each == name)
    member = index.members.get(name)
    if member is not None:
        return ImageRef(uri, bytes=member.bytes, container=container, offset=member.offset, problem=member.problem)
    if index.damage is not None:
        return ImageRef(uri, container=container, problem=str(index.damage))
    raise NotFoundError(f"{uri} does not exist.")


@dataclass(frozen=True)
class _Listing:
    storage: Storage
    exclude: tuple[str, ...]
    notes: SourceNotes
    planned: ListedBefore | None
    image_column: str | None = None
    uri_column: str | None = None

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
        return self._walk(root, pattern) if self.uri_column is None else self._from_named(root, pattern)

    def _from_named(self, root: str, pattern: str | None) -> Iterator[ImageRef]:
        """List a folder whose Parquet files name images, some of which may lie in it, or be named again."""
        seen: set[int] = set()
        planned: set[int] = set()
        if self.planned:
            # Names have no order to go on in, so that all is listed again, and noted again.
            self.notes.clear()
            planned = self.planned.all_image_ids()
        yield from self._once(replace(self, planned=None)._walk(root, pattern), seen, planned)

    def _once(self, refs: Iterator[ImageRef], seen: set[int], planned: set[int]) -> Iterator[ImageRef]:
        """Pass each image on the first time that it is named, but for those that were planned before."""
        for ref in refs:
            number = image_id(ref.uri)
            if number in seen:
                self.notes.duplicates += 1
                continue
            seen.add(number)
            if number not in planned:
                yield ref

    def _walk(self, root: str, pattern: str | None) -> Iterator[ImageRef]:
        root, pattern = self._into_folder(root, pattern)
        after = self.planned.start_after if self.planned else None
        for listed in self.storage.list(root, pattern, after=after, on_link=self.notes.note_link):
            suffix = suffix_of(listed.uri)
            if listed.uri.startswith(self.exclude) or (self.planned and self.planned.is_before_last(listed.uri)):
                continue
            if suffix in _CONTAINER_SUFFIXES:
                yield from self._unplanned(listed, is_only_input=False)
            elif self.planned and self.planned.is_last(listed.uri):
                continue
            elif suffix in IMAGE_SUFFIXES or (pattern is not None and not _is_refused(listed.uri)):
                # A pattern is taken at its word, because many buckets name images without an extension.
                yield ImageRef(listed.uri, listed.bytes, listed.etag)
            else:
                self.notes.skipped[archive_suffix(listed.uri) or suffix or "no extension"] += 1

    def _into_folder(self, root: str, pattern: str | None) -> tuple[str, str | None]:
        """Move the leading folders of a pattern that are no wildcards into the root.

        A link to a folder that lies below the root is not entered (`local_files.walk_files`), unless it is the very
        one that is asked for.
        """
        while pattern is not None and is_local(root):
            first, slash, rest = pattern.partition("/")
            if not slash or not first or has_magic(first) or self.storage.kind(join(root, first)) != "folder":
                break
            root, pattern = join(root, first), rest
        return root, pattern

    def _from_file(self, uri: str) -> Iterator[ImageRef]:
        suffix = suffix_of(uri)
        if _is_refused(uri):
            raise InputError(f"{base_name(uri)} {UNREADABLE_ARCHIVE}.")
        if suffix in _CONTAINER_SUFFIXES:
            return self._unplanned(self.storage.stat(uri), is_only_input=True)
        if is_listing(uri):
            listing = open_listing(uri, self.storage, self.uri_column)
            self.notes.listing = listing.understood
            return self._from_listing(listing.entries(), uri)
        listed = self.storage.stat(uri)
        sample = b"" if suffix in IMAGE_SUFFIXES else self.storage.read(uri, 0, SAMPLE_BYTES)
        if sample.startswith(b"PAR1"):
            raise InputError(f"{uri} is Parquet, and its name does not say so; call it .parquet.")
        if sample and looks_like_text(sample):
            raise InputError(
                f"{uri} is text, and its name does not tell what it lists; call it .txt (one name a line), .csv, .tsv, "
                ".json or .jsonl."
            )
        return iter([ImageRef(listed.uri, listed.bytes, listed.etag)])

    def _from_listing(self, entries: Iterable[Entry], listing: str, *, is_shown: bool = True) -> Iterator[ImageRef]:
        # Numbers of 8 bytes stand for the uris: a listing may name a hundred million images.
        seen: set[int] = set()
        planned: set[int] = set()
        if self.planned:
            # The whole listing is read again, and so are its notes.
            understood, planned = self.notes.listing, self.planned.all_image_ids()
            self.notes.clear()
            self.notes.listing = understood
        folder, shown = folder_of(local_path(listing) if is_local(listing) else listing), list[str]()
        understood = self.notes.listing
        for entry in entries:
            if entry.is_comment:
                self.notes.skipped[COMMENT_LINES] += 1
                continue
            if is_shown and len(shown) < _SHOWN_NAMES and entry.text:
                shown.append(_shown_name(entry.text))
                self.notes.listing = f"{understood}: {', '.join(shown)}"
            yield from self._once(self._from_entry(entry, folder, listing, seen), seen, planned)

    def _from_entry(self, entry: Entry, folder: str, listing: str, seen: set[int]) -> Iterator[ImageRef]:
        """List what an entry names: an image, a container's images, or the row that says why it is neither."""
        if entry.text is None:
            self.notes.refused["without a name"] += 1
            return iter(
                [
                    ImageRef(
                        _place(entry, listing),
                        problem=f"{entry.place.replace('=', ' ')} of the listing: {entry.problem}",
                    )
                ]
            )
        address = read_address(entry.text, folder)
        if address.problem is not None:
            self.notes.refused["without a valid address"] += 1
            is_name = len(address.name) <= _LONGEST_NAME and address.name[:5].lower() != "data:"
            return iter([ImageRef(address.name if is_name else _place(entry, listing), problem=address.problem)])
        name = address.name
        if address.signed is not None:
            if not address.is_same_object and image_id(name) in seen and self._is_other(name, address.signed):
                # What tells the two apart is a secret, and cannot be part of a name.
                name = f"{name}#{entry.place}"
            self.storage.signed.add({name: address.signed})
            self.notes.signed += 1
        scheme_problem = self.storage.scheme_problem(name)
        if scheme_problem is not None:
            scheme = f"{scheme_of(name)}://"
            reason = scheme_problem.removeprefix(f"{scheme} ")
            reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 3]}..."
            self.notes.refused[f"of {scheme}, which {reason}"] += 1
            return iter([ImageRef(name)])
        if _is_refused(name):
            self.notes.refused[f"of {archive_suffix(name)}"] += 1
            return iter([ImageRef(name, container=name, problem=f"it {UNREADABLE_ARCHIVE}")])
        return self._from_named_container(name) if suffix_of(name) in _CONTAINER_SUFFIXES else iter([ImageRef(name)])

    def _is_other(self, name: str, signed: str) -> bool:
        return self.storage.signed.find(name) not in (None, signed)

    def _from_named_container(self, uri: str) -> Iterator[ImageRef]:
        try:
            listed = self.storage.stat(uri)
        except NotFoundError:
            # Its row will say `missing`.
            return iter([ImageRef(uri)])
        except TransientStorageError:
            raise
        except StorageError as error:
            # One container that refuses is no reason to end the job.
            return iter([ImageRef(uri, container=uri, problem=str(error))])
        return self._from_container(listed, is_only_input=False)

    def _unplanned(self, listed: ObjectInfo, *, is_only_input: bool) -> Iterator[ImageRef]:
        """List a container's images but for those that were planned before."""
        if self.planned is None or not self.planned.is_last(listed.uri):
            return self._from_container(listed, is_only_input=is_only_input)
        numbers = self.planned.last_image_ids
        # It was noted when it was listed first what of it is no image.
        again = replace(self, notes=SourceNotes())
        refs = again._from_container(listed, is_only_input=is_only_input)
        return (ref for ref in refs if image_id(ref.uri) not in numbers)

    def _from_container(self, listed: ObjectInfo, *, is_only_input: bool) -> Iterator[ImageRef]:
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

    def _from_tar(self, listed: ObjectInfo, *, is_only_input: bool) -> Iterator[ImageRef]:
        def is_wanted(name: str) -> bool:
            return suffix_of(name) in IMAGE_SUFFIXES and not base_name(name).startswith(".")

        # In a tar that was appended to, the last member of a name is the one that counts.
        index = read_tar(listed.uri, self.storage, is_wanted)
        self.notes.duplicates += index.replaced
        for name, count in index.others.items():
            self.notes.skipped[name] += count
        for member in index.members.values():
            uri = tar_uri(member.name, listed.uri)
            if member.problem is not None:
                self.notes.refused["inside a tar (links, sparse files)"] += 1
            yield ImageRef(
                uri, member.bytes, listed.etag, container=listed.uri, offset=member.offset, problem=member.problem
            )
        if index.damage is not None:
            raise index.damage

    def _from_parquet(self, listed: ObjectInfo, *, is_only_input: bool) -> Iterator[ImageRef]:
        columns = choose_columns(listed, self.storage, image_column=self.image_column, uri_column=self.uri_column)
        if is_only_input:
            require_columns(listed, columns)
        if columns.image is not None:
            self.notes.columns[columns.image] += 1
            for row in range(columns.rows):
                uri = row_uri(listed.uri, row)
                yield ImageRef(uri, None, listed.etag, container=listed.uri, row=row, column=columns.image)
        elif columns.problem is not None:
            # It has images, or should have: a row of its own says what is wrong, and counts as an error.
            raise DamagedContainerError(columns.problem)
        elif columns.uri is not None and (is_only_input or self.uri_column is not None):
            # Of many files the first stands for all.
            is_first = is_only_input or not self.notes.listing
            if is_first:
                self.notes.listing = f"Parquet, names from the column {columns.uri}"
            # A file that names itself, or another that names it, would be gone through for ever.
            rows = self._rows(listed, columns.uri)
            yield from replace(self, uri_column=None)._from_listing(rows, listed.uri, is_shown=is_first)
        else:
            # Metadata beside the images (Hugging Face's image folders have some), not a container.
            names = f"{columns.uri} names images: name it with --uri-column" if columns.uri else columns.described
            self.notes.note_without_images(listed.uri, names)

    def _rows(self, listed: ObjectInfo, column: str) -> Iterator[Entry]:
        # Noted with the first row, as the notes may be taken anew before it.
        self.notes.columns[column] += 1
        for row, name in enumerate(read_uris(listed.uri, column, self.storage)):
            yield Entry(f"row={row}", name) if name else Entry(f"row={row}", problem=f"the column {column} is empty")


def _is_refused(uri: str) -> bool:
    return archive_suffix(uri) is not None


def _place(entry: Entry, listing: str) -> str:
    return f"{local_path(listing) if is_local(listing) else listing}#{entry.place}"


def _shown_name(text: str) -> str:
    name = redact(without_query(text))
    return name if len(name) <= _LONGEST_SHOWN else f"...{name[3 - _LONGEST_SHOWN :]}"


COMMENT_LINES = "comment lines"
"""How a listing's comments are counted among what was skipped."""
