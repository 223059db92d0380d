"""What listing needs to know of an earlier listing of the same input that was cut off."""

from typing import Protocol


class ListedBefore(Protocol):
    """The images that were listed before; `pipeline.planning.resume_point` implements it."""

    @property
    def image_count(self) -> int:
        """Number of images that were listed before."""

    @property
    def start_after(self) -> str:
        """A name shortly before the last entry's: a folder is listed from here on, and the last entry with it."""

    @property
    def last_image_ids(self) -> set[int]:
        """The image ids that were listed of the container that came last."""

    def is_before_last(self, uri: str) -> bool:
        """Return whether a file of a folder comes before the one that was listed last."""

    def is_last(self, uri: str) -> bool:
        """Return whether a file of a folder is the one that was listed last, or its container."""

    def all_image_ids(self) -> set[int]:
        """Return the image ids of everything that was listed."""
