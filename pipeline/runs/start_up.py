"""StartUp: when each part of a run's start was done, for summary.json and `htc run --verbose`."""

import threading
import time
from typing import Final, Literal, get_args

Part = Literal["imports", "weights", "listing", "ray", "worker", "shard"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""The parts that are timed, which partly overlap.

imports: the program is loaded. weights: the model is identified, its weights fetched and hashed. listing: the first
images are planned. ray: Ray runs. worker: the first worker has its model. shard: the first shard is committed.
"""


class StartUp:
    """Notes the seconds from the beginning of a command to the end of each part; parts may end in any thread."""

    def __init__(self, began: float | None = None) -> None:
        """`began`: when the command began, on the clock of `time.monotonic`; now when None."""
        self._began = time.monotonic() if began is None else began
        self._seconds: dict[Part, float] = {}
        self._lock = threading.Lock()

    def mark(self, part: Part) -> None:
        """Note that a part is done; only the first time counts."""
        with self._lock:
            self._seconds.setdefault(part, time.monotonic() - self._began)

    def seconds(self) -> dict[str, float]:
        """Return the seconds until each part was done, in the order of PARTS; without those that are not."""
        with self._lock:
            return {part: round(self._seconds[part], 3) for part in PARTS if part in self._seconds}
