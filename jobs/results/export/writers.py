"""What all formats share: where files are written, and what is counted and said at the end."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import SpecError

Progress = Callable[[int], None]
"""Takes how many instances were written since it was last called."""


@dataclass
class ExportFolder:
    """A folder under construction.

    path: where files are written now. final: where they will be. counts: what is said at the end, by sentence with
    `{n}` for the number. left_out_images, left_out_instances: of the chosen ones, not written.
    """

    path: Path
    final: Path
    counts: Counter[str] = field(default_factory=Counter)
    left_out_images: int = 0
    left_out_instances: int = 0

    def file(self, name: str) -> Path:
        """Return the path of a file, and make its folder.

        Raises:
            SpecError: the folder cannot be made.
        """
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"{self.final / name} cannot be written: {error.strerror or error}.") from error
        return path

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file.

        Raises:
            SpecError: it cannot be written, such as on a full disk.
        """
        path = self.file(name)
        try:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise SpecError(f"{self.final / name} cannot be written: {error.strerror or error}.") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write(name, json.dumps(value, ensure_ascii=False) + "\n")
