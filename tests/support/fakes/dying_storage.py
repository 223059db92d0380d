"""A `Storage` whose writes fail from a given number on."""

from pipeline.errors import StorageError
from pipeline.storage.storage import Storage


class CutOff(Storage):
    """Storage whose writes fail from the write with number `at` on, counted from 0."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.writes_left = at

    def write(self, uri: str, payload: bytes) -> None:
        if not self.writes_left:
            raise StorageError("power cut")
        self.writes_left -= 1
        super().write(uri, payload)
