"""`htc train`: train from a spec, show the progress, and report the result."""

import logging
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jobs.terminal.console import say, write_line, write_table
from pipeline import logs
from pipeline.signals import StopRequest
from pipeline.text import count_of

if TYPE_CHECKING:
    from htc_model.training.spec import TrainingSpec

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
# A data set may have thousands of flaws; the weights file counts them all by kind.
MAX_NOTES = 20
_SHOWN_CLASSES = 8


def train_and_report(spec_path: str | None, overrides: Mapping[str, object]) -> None:
    """Train, or resume the training in the output folder, and report it.

    Args:
        spec_path: path of the YAML training spec.
        overrides: values by dotted key; None stands for a flag not given.

    Raises:
        HtcError: see `pipeline.training.single`.
    """
    from pipeline.training.run import train
    from pipeline.training.spec import load_training_spec

    spec = load_training_spec(spec_path, overrides)
    display = _TrainingDisplay(Console(stderr=True))
    notes = _Notes(display)
    logging.getLogger("htc_model").addHandler(notes)
    try:
        # SIGTERM and SIGHUP end it as Ctrl-C does, so that its local Ray is shut down too.
        with StopRequest() as stop, stop.interrupting():
            weights = train(spec, on_step=display.step)
    finally:
        logging.getLogger("htc_model").removeHandler(notes)
        display.close()
    if not display.has_steps:
        say("Nothing to train: all steps were done before.")
    _report(spec, weights)


class _TrainingDisplay:
    """A bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=console)
        self._row: TaskID | None = None
        self._last_line = 0.0
        self.has_steps = False

    def step(self, done: int, steps: int, losses: Mapping[str, float]) -> None:
        """Show a finished step."""
        self.has_steps = True
        loss = f"loss {losses['total']:.3f}"
        if logs.is_json():
            if done == steps or time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._last_line = time.monotonic()
                sentence = f"{done}/{steps} steps, {loss}"
                logs.log_event(log, "training_progress", sentence, step=done, steps=steps, losses=losses)
            return
        if not self._console.is_terminal:
            if done == steps or time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._last_line = time.monotonic()
                self.note(f"{done}/{steps} steps, {loss}")
            return
        if self._row is None:
            self._bar.start()
            self._row = self._bar.add_task("", total=steps, completed=done)
        self._bar.update(self._row, completed=done, description=loss)

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


class _Notes(logging.Handler):
    """Shows the first warnings of the network (flawed annotations, unreadable images)."""

    def __init__(self, display: _TrainingDisplay) -> None:
        super().__init__(logging.WARNING)
        self._display = display
        self._shown = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Show a warning, or report once that there are more."""
        self._shown += 1
        if self._shown <= MAX_NOTES:
            message = record.getMessage()
            self._display.note(message[:1].upper() + message[1:])
        elif self._shown == MAX_NOTES + 1:
            self._display.note("More warnings follow; metrics.jsonl names the images, the weights file has the counts.")


def _report(spec: "TrainingSpec", weights: Path) -> None:
    from htc_model.weights.load import load_weights

    metadata = load_weights(weights).metadata
    folder = weights.parent
    classes = metadata["classes"]
    shown = ", ".join(classes[:_SHOWN_CLASSES]) + (", ..." if len(classes) > _SHOWN_CLASSES else "")
    lines = [
        ("trained", f"{spec.model.preset}, {metadata['steps']:,} steps on {count_of(metadata['pictures'], 'image')}"),
        ("classes", f"{len(classes)}: {shown}"),
    ]
    if fresh := metadata.get("initialised_at_random"):
        lines.append(("at random", f"{', '.join(fresh)} (no initial weights fit)"))
    for kind, count in metadata["left_out"].items():
        lines.append(("left out", f"{count_of(count, 'annotation')}: {kind}"))
    for data_set, scores in metadata["scores"].items():
        text = ", ".join(f"{name} {scores[name]:.3f}" for name in ("mask_ap", "mask_ap50", "box_ap") if name in scores)
        lines.append(("scores", f"{text} on {data_set}"))
    lines.append(("weights", str(weights)))
    lines.append(("metrics", str(folder / "metrics.jsonl")))
    curves = folder / "curves.png"
    if curves.exists():
        lines.append(("curves", str(curves)))
    write_line()
    write_table(["", ""], lines, has_header=False)
    write_line(f"Next: htc run INPUT OUTPUT --weights {shlex.quote(str(weights))}")
