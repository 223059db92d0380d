"""The file `metrics.jsonl` of a training run: one JSON line per logged step and per evaluation."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete lines; a kill may leave half a line at the end. Empty if the file does not exist."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def append_metrics(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines logged after a checkpoint's step: a resumed run takes those steps again."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(text)["step"] <= step:
                kept.append(text)
    path.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
