"""What `htc train` shows while it trains: steps, losses, speed, time left, and the scores of each evaluation."""

import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline import logs
from pipeline.text import count_of, format_duration

if TYPE_CHECKING:
    from htc_model.training.spec import TrainingSpec

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
# Speed and time left are of so many steps before, so that they follow the machine's load.
_WINDOW = 50
_SHOWN_CLASSES = 30


class TrainingDisplay:
    """A bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, console: Console, spec: "TrainingSpec") -> None:
        self._console = console
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=console)
        self._row: TaskID | None = None
        self._last_line = 0.0
        self._epochs = spec.epochs
        self._images = spec.batch_size * spec.accumulate * spec.workers
        self._times: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self.has_steps = False

    def step(self, done: int, steps: int, losses: Mapping[str, float]) -> None:
        """Show a finished step."""
        self.has_steps = True
        self._times.append((done, time.monotonic()))
        loss = f"loss {losses['total']:.3f}{self._speed()}"
        if logs.is_json():
            if done == steps or time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._last_line = time.monotonic()
                sentence = f"{done}/{steps} steps, {loss}{self._time_left(done, steps)}"
                logs.log_event(log, "training_progress", sentence, step=done, steps=steps, losses=losses)
            return
        if not self._console.is_terminal:
            if done == steps or time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._last_line = time.monotonic()
                self.note(f"{done}/{steps} steps, {loss}{self._time_left(done, steps)}")
            return
        if self._row is None:
            self._bar.start()
            self._row = self._bar.add_task("", total=steps, completed=done)
        self._bar.update(self._row, completed=done, description=loss)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Show the scores of an evaluation: a line for each data set, and one for each of its classes."""
        if logs.is_json():
            values = {name: line.get(name) for name in ("epoch", "evaluation", "classes", "is_best")}
            logs.log_event(log, "training_scores", f"epoch {line['epoch'] + 1}/{self._epochs} is scored", **values)
            self._times.clear()
            return
        for data_set, scores in line["evaluation"].items():
            best = ", the best so far" if line.get("is_best") else ""
            overall = ", ".join(f"{name} {_score(scores[name])}" for name in _kinds(scores))
            self.note(f"epoch {line['epoch'] + 1}/{self._epochs}: {overall} on {_short(data_set)}{best}")
            classes = line.get("classes", {}).get(data_set, {})
            width = max((len(name) for name in classes), default=0)
            for name, found in list(classes.items())[:_SHOWN_CLASSES]:
                each = ", ".join(f"{kind} {_score(found[kind])}" for kind in _kinds(found))
                self.note(f"  {name:{width}}  {each}, {count_of(found['objects'], 'object')}")
            if len(classes) > _SHOWN_CLASSES:
                self.note(f"  and {len(classes) - _SHOWN_CLASSES} more classes, in metrics.jsonl")
        # An evaluation's time is none of the steps'.
        self._times.clear()

    def note(self, sentence: str) -> None:
        """Write a sentence above the bar."""
        if logs.is_json():
            # The log has the network's warnings already.
            return
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        if not logs.is_json():
            # Also without a bar it writes a line.
            self._bar.stop()
        sys.stderr.flush()

    def _seconds_per_step(self) -> float | None:
        if len(self._times) < 2:
            return None
        (first, began), (last, ended) = self._times[0], self._times[-1]
        return (ended - began) / (last - first) if last > first and ended > began else None

    def _speed(self) -> str:
        each = self._seconds_per_step()
        return "" if each is None else f", {self._images / each:.1f} images/s"

    def _time_left(self, done: int, steps: int) -> str:
        each = self._seconds_per_step()
        return "" if each is None or done == steps else f", {format_duration((steps - done) * each)} left"


def _kinds(scores: Mapping[str, float]) -> list[str]:
    return [name for name in ("mask_ap", "mask_ap50", "box_ap") if name in scores]


def _score(value: float) -> str:
    return "  -  " if value < 0 else f"{value:.3f}"


def _short(data_set: str) -> str:
    return Path(data_set).name
