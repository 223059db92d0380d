"""Lists the images of an input: of folders, globs, tar and Parquet files, and listings of any of them.

| input.uri | the images |
|---|---|
| `photos/` | the files below it with an image's extension, and the images in its .tar and .parquet files |
| `photos/2024-*/*` | all files that match, whatever their extension, and the images in .tar and .parquet files |
| `shard.tar` | its members with an image's extension: `tar://a.jpg::shard.tar`, ... |
| `images.parquet` | its rows: `images.parquet#row=0`, ... |
| `list.csv` | the files that its lines name, and the images in the .tar and .parquet files that they name |

The order is fixed: storage is listed by uri, containers and listings keep their own order, so that the same input gives
the same manifest everywhere. Everything is streamed; this module never holds all images of an input.

What cannot be read becomes an `ImageRef` with a problem where it stands for an image (a damaged tar, a line without a
name), and a count in `SourceNotes` where it does not (a .txt file in a folder).

An example of resuming: a folder holds `a.jpg`, `b.tar` (with 1.jpg to 9.jpg) and `c.jpg`, and an earlier listing ended
at the member 4.jpg. Its last entry is `b.tar`: `a.jpg` comes before it and is skipped, the tar is listed again without
the ids of 1.jpg to 4.jpg, and `c.jpg` follows. A listing (`list.csv`) has no order of names to continue in, so it is
read from its beginning, without the ids of all images that were listed.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
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
from pipeline.inputs.source_notes import SourceNotes
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
_SHOWN_NAMES = 3
_LONGEST_SHOWN = 80
_LONGEST_REASON = 120
# A longer address that cannot be read is named by its line.
_LONGEST_NAME = 2048
COMMENT_LINES = "comment lines"
"""The key in `SourceNotes.skipped` of a listing's comments."""
_ROW_URI = re.compile(r"(?P<container>.+)#row=(?P<row>\d+)", re.DOTALL)


def list_images(
    section: InputSection,
    storage: Storage,
    *,
    exclude: Iterable[str] = (),
    notes: SourceNotes | None = None,
    listed_before: ListedBefore | None = None,
) -> Iterator[ImageRef]:
    """List an input's images, in a fixed order, at most `section.limit`.

    Args:
        exclude: folders inside the input whose files are not part of it (the run's own output).
        notes: filled while the iterator is consumed.
        listed_before: an interrupted listing to continue; `notes` are then the notes of that listing.

    Raises:
        InputError: the input does not exist, or is of a kind that cannot be read.
        StorageError: it cannot be listed.
    """
    folders = tuple(join(folder, "") for folder in exclude)
    noted = notes if notes is not None else SourceNotes()
    listing = _Listing(storage, folders, noted, listed_before, section.image_column, section.uri_column)
    limit = section.limit
    if limit is not None and listed_before is not None:
        limit = max(0, limit - listed_before.image_count)
    return islice(listing.images(section), limit)


def locate_image(uri: str, storage: Storage) -> ImageRef:
    """Find an image by its uri in the tables.

    Raises:
        NotFoundError: its file or container, or the container's member, does not exist.
    """
    if uri.startswith("tar://"):
        # Names may contain "::" themselves, so every split is tried, the longest member name first.
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
    """Lists one input; a listing that names containers lists them with the same methods.

    exclude: folders whose files are not input, each with a final slash.
    image_column, uri_column: the user's choice, see `InputSection`.
    """

    storage: Storage
    exclude: tuple[str, ...]
    notes: SourceNotes
    listed_before: ListedBefore | None
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
        """Split an input with wildcards into a folder and a pattern; the pattern is None without wildcards.

        A part that exists under this very name is no pattern: folders called `set[1]` are common.
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
        """List a folder whose Parquet files name images; these may be in the folder too, or be named again."""
        skipped_ids: set[int] = set()
        if self.listed_before:
            # Names in a column have no order to continue in, so everything is listed again, with new notes.
            self.notes.clear()
            skipped_ids = self.listed_before.all_image_ids()
        yield from self._once(replace(self, listed_before=None)._walk(root, pattern), set(), skipped_ids)

    def _once(self, refs: Iterator[ImageRef], named_ids: set[int], skipped_ids: set[int]) -> Iterator[ImageRef]:
        """Yield each image the first time that it is named, except for `skipped_ids`; `named_ids` grows."""
        for ref in refs:
            identity = image_id(ref.uri)
            if identity in named_ids:
                self.notes.duplicates += 1
                continue
            named_ids.add(identity)
            if identity not in skipped_ids:
                yield ref

    def _walk(self, root: str, pattern: str | None) -> Iterator[ImageRef]:
        root, pattern = self._into_folder(root, pattern)
        after = self.listed_before.start_after if self.listed_before else None
        for listed in self.storage.list(root, pattern, after=after, on_link=self.notes.note_link):
            suffix = suffix_of(listed.uri)
            if listed.uri.startswith(self.exclude) or (
                self.listed_before and self.listed_before.is_before_last(listed.uri)
            ):
                continue
            if suffix in _CONTAINER_SUFFIXES:
                yield from self._not_listed_before(listed, is_only_input=False)
            elif self.listed_before and self.listed_before.is_last(listed.uri):
                continue
            elif suffix in IMAGE_SUFFIXES or (pattern is not None and not _is_unreadable_archive(listed.uri)):
                # A pattern selects files of any name, as images in many buckets have no extension.
                yield ImageRef(listed.uri, listed.bytes, listed.etag)
            else:
                self.notes.skipped[archive_suffix(listed.uri) or suffix or "no extension"] += 1

    def _into_folder(self, root: str, pattern: str | None) -> tuple[str, str | None]:
        """Move the leading folders of a pattern that are no wildcards into the root.

        Links to folders below the root are not followed (`pipeline.storage.local.walk_files`); the root may be one.
        """
        while pattern is not None and is_local(root):
            first, slash, rest = pattern.partition("/")
            if not slash or not first or has_magic(first) or self.storage.kind(join(root, first)) != "folder":
                break
            root, pattern = join(root, first), rest
        return root, pattern

    def _from_file(self, uri: str) -> Iterator[ImageRef]:
        suffix = suffix_of(uri)
        if _is_unreadable_archive(uri):
            raise InputError(f"{base_name(uri)} {UNREADABLE_ARCHIVE}.")
        if suffix in _CONTAINER_SUFFIXES:
            return self._not_listed_before(self.storage.stat(uri), is_only_input=True)
        if is_listing(uri):
            listing = open_listing(uri, self.storage, self.uri_column)
            self.notes.listing = listing.description
            return self._from_listing(listing.entries(), uri)
        listed = self.storage.stat(uri)
        sample = b"" if suffix in IMAGE_SUFFIXES else self.storage.read(uri, 0, SAMPLE_BYTES)
        if sample.startswith(b"PAR1"):
            raise InputError(f"{uri} is a Parquet file without the extension; rename it to .parquet.")
        if sample and looks_like_text(sample):
            raise InputError(
                f"{uri} is a text file without the extension of a listing; rename it to .txt (one name a line), .csv, "
                ".tsv, .json or .jsonl."
            )
        return iter([ImageRef(listed.uri, listed.bytes, listed.etag)])

    def _from_listing(self, entries: Iterable[Entry], listing: str, *, is_shown: bool = True) -> Iterator[ImageRef]:
        # Ids of 8 bytes instead of uris: a listing may name a hundred million images.
        named_ids: set[int] = set()
        skipped_ids: set[int] = set()
        if self.listed_before:
            # The whole listing is read again, with new notes.
            description, skipped_ids = self.notes.listing, self.listed_before.all_image_ids()
            self.notes.clear()
            self.notes.listing = description
        folder, shown = folder_of(local_path(listing) if is_local(listing) else listing), list[str]()
        description = self.notes.listing
        for entry in entries:
            if entry.is_comment:
                self.notes.skipped[COMMENT_LINES] += 1
                continue
            if is_shown and len(shown) < _SHOWN_NAMES and entry.text:
                shown.append(_shown_name(entry.text))
                self.notes.listing = f"{description}: {', '.join(shown)}"
            yield from self._once(self._from_entry(entry, folder, listing, named_ids), named_ids, skipped_ids)

    def _from_entry(self, entry: Entry, folder: str, listing: str, named_ids: set[int]) -> Iterator[ImageRef]:
        """List what an entry names: an image, a container's images, or one row with the problem.

        Args:
            folder: the folder that relative names start from.
            named_ids: the ids of the images that the listing has named so far.
        """
        if entry.text is None:
            self.notes.refused["without a name"] += 1
            problem = f"{entry.place.replace('=', ' ')} of the listing: {entry.problem}"
            return iter([ImageRef(_place(entry, listing), problem=problem)])
        address = read_address(entry.text, folder)
        if address.problem is not None:
            self.notes.refused["without a valid address"] += 1
            is_name = len(address.name) <= _LONGEST_NAME and address.name[:5].lower() != "data:"
            return iter([ImageRef(address.name if is_name else _place(entry, listing), problem=address.problem)])
        name = address.name
        if address.signed is not None:
            name = self._add_signed(address.signed, name, entry, named_ids, is_same_object=address.is_same_object)
        if (refusal := self._scheme_refusal(name)) is not None:
            # Reading it will fail, and its row will have the reason.
            self.notes.refused[refusal] += 1
            return iter([ImageRef(name)])
        if _is_unreadable_archive(name):
            self.notes.refused[f"of {archive_suffix(name)}"] += 1
            return iter([ImageRef(name, container=name, problem=f"it {UNREADABLE_ARCHIVE}")])
        return self._from_named_container(name) if suffix_of(name) in _CONTAINER_SUFFIXES else iter([ImageRef(name)])

    def _add_signed(self, signed: str, name: str, entry: Entry, named_ids: set[int], *, is_same_object: bool) -> str:
        """Keep a signed address for reading; return the image's name without its secrets."""
        is_known = image_id(name) in named_ids and self.storage.signed.find(name) not in (None, signed)
        if not is_same_object and is_known:
            # Only the secret part of the address differs from another image's, and cannot be part of a name.
            name = f"{name}#{entry.place}"
        self.storage.signed.add({name: signed})
        self.notes.signed += 1
        return name

    def _scheme_refusal(self, name: str) -> str | None:
        """Describe the kind of address that cannot be opened on this machine; None if it can."""
        problem = self.storage.scheme_problem(name)
        if problem is None:
            return None
        scheme = f"{scheme_of(name)}://"
        reason = problem.removeprefix(f"{scheme} ")
        reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 3]}..."
        return f"of {scheme}, which {reason}"

    def _from_named_container(self, uri: str) -> Iterator[ImageRef]:
        try:
            listed = self.storage.stat(uri)
        except NotFoundError:
            # Its row will have the status `missing`.
            return iter([ImageRef(uri)])
        except TransientStorageError:
            raise
        except StorageError as error:
            # One container that cannot be read must not end the run.
            return iter([ImageRef(uri, container=uri, problem=str(error))])
        return self._from_container(listed, is_only_input=False)

    def _not_listed_before(self, listed: ObjectInfo, *, is_only_input: bool) -> Iterator[ImageRef]:
        """List a container's images, except for those that were listed before."""
        if self.listed_before is None or not self.listed_before.is_last(listed.uri):
            return self._from_container(listed, is_only_input=is_only_input)
        listed_ids = self.listed_before.last_image_ids
        # The first listing has already noted what in it is not an image.
        again = replace(self, notes=SourceNotes())
        refs = again._from_container(listed, is_only_input=is_only_input)
        return (ref for ref in refs if image_id(ref.uri) not in listed_ids)

    def _from_container(self, listed: ObjectInfo, *, is_only_input: bool) -> Iterator[ImageRef]:
        """List a container's images; damage becomes one more row, or an error if the input has no other image."""
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
            # It seems to have images: one row has the problem, and counts as a failure.
            raise DamagedContainerError(columns.problem)
        elif columns.uri is not None and (is_only_input or self.uri_column is not None):
            # Of many files only the first is described.
            is_first = is_only_input or not self.notes.listing
            if is_first:
                self.notes.listing = f"Parquet, names from the column {columns.uri}"
            # Without uri_column, so that files that name each other do not list each other for ever.
            rows = self._rows(listed, columns.uri)
            yield from replace(self, uri_column=None)._from_listing(rows, listed.uri, is_shown=is_first)
        else:
            # Metadata beside the images, as in Hugging Face's image folders, and not a container.
            names = f"{columns.uri} names images: name it with --uri-column" if columns.uri else columns.described
            self.notes.note_without_images(listed.uri, names)

    def _rows(self, listed: ObjectInfo, column: str) -> Iterator[Entry]:
        # Counted with the first row, as `_from_listing` may clear the notes before it.
        self.notes.columns[column] += 1
        for row, name in enumerate(read_uris(listed.uri, column, self.storage)):
            yield Entry(f"row={row}", name) if name else Entry(f"row={row}", problem=f"the column {column} is empty")


def _is_unreadable_archive(uri: str) -> bool:
    return archive_suffix(uri) is not None


def _place(entry: Entry, listing: str) -> str:
    return f"{local_path(listing) if is_local(listing) else listing}#{entry.place}"


def _shown_name(text: str) -> str:
    name = redact(without_query(text))
    return name if len(name) <= _LONGEST_SHOWN else f"...{name[3 - _LONGEST_SHOWN :]}"
