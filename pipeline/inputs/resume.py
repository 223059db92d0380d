"""ListedBefore: what listing needs to know of an interrupted listing of the same input, to resume it."""

from typing import Protocol


class ListedBefore(Protocol):
    """The images that were listed before the interruption; `pipeline.planning.resume_point` implements it.

    The last entry is the file of a folder, or the container, that held the last listed image.
    """

    @property
    def image_count(self) -> int:
        """Number of images that were listed before."""

    @property
    def start_after(self) -> str:
        """A name shortly before the last entry's; a folder is listed from here on, the last entry included."""

    @property
    def last_image_ids(self) -> set[int]:
        """The ids of the images that were listed of the last entry."""

    def is_before_last(self, uri: str) -> bool:
        """Return whether a file of a folder comes before the last entry."""

    def is_last(self, uri: str) -> bool:
        """Return whether a file of a folder is the last entry."""

    def all_image_ids(self) -> set[int]:
        """Return the ids of all images that were listed before."""
