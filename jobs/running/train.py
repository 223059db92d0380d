"""`htc train`: train from a spec, show the progress, and report the result."""

import logging
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from jobs.running.training_display import TrainingDisplay
from jobs.terminal.console import say, write_line, write_table
from pipeline.errors import SpecError
from pipeline.signals import StopRequest
from pipeline.text import count_of

if TYPE_CHECKING:
    from htc_model.training.spec import TrainingSpec
    from pipeline.training.recipe import Strength
    from pipeline.training.spec import StoredTrainingSpec

# A data set may have thousands of flaws; the weights file counts them all by kind.
MAX_NOTES = 20
_SHOWN_CLASSES = 8


@dataclass(frozen=True)
class TrainRequest:
    """What `htc train` is to do, beside the settings of the training spec.

    data: a training spec, a COCO JSON file or a folder with one. output: the output folder. images, val, val_share: see
    `pipeline.training.recipe.DataFlags`. augment: "none", "light" or "strong". finds_rate: whether learning rates are
    tried instead of training.
    """

    data: str
    output: str | None = None
    images: str | None = None
    val: str | None = None
    val_share: float | None = None
    augment: "Strength | None" = None
    finds_rate: bool = False


def train_and_report(request: TrainRequest, overrides: Mapping[str, object]) -> None:
    """Train, or resume the training in the output folder, and report it.

    Args:
        request: the data set or the spec file.
        overrides: values by dotted key; None stands for a flag not given.

    Raises:
        HtcError: see `pipeline.training.single`.
    """
    from pipeline.training.recipe import DataFlags, load_training

    flags = DataFlags(request.data, request.images, request.val, request.val_share)
    spec, is_recipe = load_training(flags, overrides, output=request.output, augment=request.augment)
    if is_recipe:
        _say_recipe(spec, is_share_chosen=request.val is None and request.val_share is None)
    display = TrainingDisplay(Console(stderr=True), spec)
    notes = _Notes(display)
    logging.getLogger("htc_model").addHandler(notes)
    try:
        # SIGTERM and SIGHUP end it as Ctrl-C does, so that its local Ray is shut down too.
        with StopRequest() as stop, stop.interrupting():
            if request.finds_rate:
                _find_rate(spec, display)
                return
            weights = _train(spec, display, keeps_spec=is_recipe)
    finally:
        logging.getLogger("htc_model").removeHandler(notes)
        display.close()
    if not display.has_steps:
        say("Nothing to train: all steps were done before.")
    _report(spec, weights)


def _train(spec: "StoredTrainingSpec", display: TrainingDisplay, *, keeps_spec: bool) -> Path:
    from pipeline.training.run import train

    def step(done: int, steps: int, losses: Mapping[str, float]) -> None:
        # Not before: settings that do not fit the output's checkpoint must not replace those that do.
        if keeps_spec and not display.has_steps:
            _keep_spec(spec)
        display.step(done, steps, losses)

    return train(spec, on_step=step, on_evaluation=display.evaluation)


def _find_rate(spec: "StoredTrainingSpec", display: TrainingDisplay) -> None:
    from pipeline.training.run import find_learning_rate

    found = find_learning_rate(spec, on_step=display.step)
    display.close()
    shown = sorted({round(position) for position in (index * (len(found.rates) - 1) / 9 for index in range(10))})
    rows = [(f"{found.rates[index]:.1e}", f"{found.losses[index]:.3f}") for index in shown]
    write_table(["learning rate", "loss, smoothed"], rows, alignments=["right", "right"])
    write_line(f"The loss falls fastest at {found.steepest:.1e} and is lowest at {10 * found.suggestion:.1e}.")
    if not found.has_diverged:
        write_line("It bears the highest rate that was tried; the lowest loss may lie beyond it.")
    for name in ("find_lr.json", "find_lr.png"):
        if (path := Path(spec.output) / name).exists():
            write_line(str(path))
    write_line(f"Suggested: --learning-rate {found.suggestion:.1g}")


def _keep_spec(spec: "StoredTrainingSpec") -> None:
    """Write the settings of the recipe as a spec file, with which the same run can be repeated and changed."""
    import yaml

    folder = Path(spec.output)
    path = folder / "spec.yaml"
    values = spec.model_dump(mode="json", exclude_defaults=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# htc train {path}\n{yaml.safe_dump(values, sort_keys=False)}", encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror or error}; name another output folder.") from error


def _say_recipe(spec: "StoredTrainingSpec", *, is_share_chosen: bool) -> None:
    """Say what was chosen."""
    model = spec.model
    say(
        f"{model.preset} from {model.initial}, {count_of(spec.epochs, 'epoch')} of batches of {spec.batch_size}, "
        f"learning rate {spec.optimiser.learning_rate:g}; {Path(spec.output) / 'spec.yaml'} will hold all settings."
    )
    if spec.evaluate:
        say(f"Scored with {spec.evaluate[0].annotations}.")
    elif spec.val_share:
        rest = " (--val-share 0 trains on all)" if is_share_chosen else ""
        say(f"{spec.val_share:.0%} of the images are held out to score with{rest}.")


class _Notes(logging.Handler):
    """Shows the first warnings of the network (flawed annotations, unreadable images)."""

    def __init__(self, display: TrainingDisplay) -> None:
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
    lines += [("scores", line) for line in _score_lines(metadata["scores"])]
    lines.append(("weights", str(weights)))
    best = folder / "best.safetensors"
    if best.exists():
        chosen = load_weights(best).metadata
        lines.append(("best", f"{best}, after {chosen['steps']:,} steps"))
        lines += [("", line) for line in _score_lines(chosen["scores"])]
    lines.append(("metrics", str(folder / "metrics.jsonl")))
    if (settings := folder / "spec.yaml").exists():
        lines.append(("settings", str(settings)))
    curves = folder / "curves.png"
    if curves.exists():
        lines.append(("curves", str(curves)))
    pictures = folder / "pictures"
    if pictures.is_dir():
        lines.append(("pictures", str(pictures)))
    write_line()
    write_table(["", ""], lines, has_header=False)
    write_line(f"Next: htc run INPUT OUTPUT --weights {shlex.quote(str(best if best.exists() else weights))}")


def _score_lines(scores: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for data_set, found in scores.items():
        text = ", ".join(f"{name} {found[name]:.3f}" for name in ("mask_ap", "mask_ap50", "box_ap") if name in found)
        yield f"{text} on {data_set}"
