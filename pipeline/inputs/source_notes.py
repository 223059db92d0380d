"""SourceNotes: how the input was understood and what of it was left out."""

from collections import Counter
from dataclasses import dataclass, field

MOST_NAMED = 5
"""How many left-out Parquet files are named; the others are only counted."""


@dataclass
class SourceNotes:
    """How listing understood the input and what it left out, for the user.

    duplicates: entries of a listing, or members of a tar, that named an image again.
    skipped: files that are not images, by extension.
    refused: entries that cannot be read, by kind; each of them has its row.
    links: links to folders that were not followed, as their files are listed under other names; `link` is the first.
    listing: how the listing was read, with its first names.
    signed: images whose address has a signature.
    without_images: the first Parquet files that were left out, with their columns.
    columns: how many Parquet files were read by each column.
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
        """Count a Parquet file that is left out; the first few are named, with what they hold instead."""
        self.skipped[".parquet without images"] += 1
        if len(self.without_images) < MOST_NAMED:
            self.without_images[uri] = instead

    def note_link(self, link: str, folder: str) -> None:
        """Count a link to a folder that is listed under another name."""
        self.links += 1
        self.link = self.link or f"{link} -> {folder}"

    def clear(self) -> None:
        """Reset all notes, before the whole input is listed again."""
        vars(self).update(vars(SourceNotes()))
