"""Runs a job spec: hands shards to workers, tries again what fails, and says how it ended.

The driver's only state is the output folder. It holds no lock on anything, so killing it at any instant loses
at most the shards in flight, and the same command goes on from there.
"""

import logging
from typing import TYPE_CHECKING

from pipeline.config import JobSpec
from pipeline.errors import RunError
from pipeline.fetch import weights_here
from pipeline.fingerprint import settle_model, take_fingerprint
from pipeline.plan import require_images
from pipeline.progress import ProgressDisplay, choose_progress, count_of
from pipeline.runs import Run, open_run
from pipeline.session import Session
from pipeline.storage import Storage
from pipeline.summary import RunSummary

if TYPE_CHECKING:
    from pipeline.segmenter import LoadModel

log = logging.getLogger(__name__)

DEMO_NOTE = (
    "This is the small demo model, which knows persons only; for COCO's 80 classes: --model htc_r50_fpn fetches "
    "published weights."
)


def run(
    spec: JobSpec,
    *,
    run: str | None = None,
    fresh: bool = False,
    progress: ProgressDisplay | None = None,
    load_model: "LoadModel | None" = None,
) -> RunSummary:
    """Segment the spec's input into the spec's output, resuming what is there already.

    Args:
        run: the run's name; by default the newest of the output goes on, or a new one begins.
        fresh: begin a new run whatever is there.
        progress: where to show how far it is; by default a bar on a terminal, plain lines elsewhere.
        load_model: loads the model in the workers instead of the spec's preset and weights; must survive
            pickling.

    Returns:
        The summary, which is also in the run's summary.json; its `exit_code` is 0 when every image has its
        row and the error rate is within the budget. Ctrl-C and SIGTERM end the run with the status
        "interrupted".

    Raises:
        HtcError: the run cannot begin (SpecError, InputError, WeightsUnavailableError, StorageError), or cannot go
            on (RunError); what is committed stays.
    """
    display = progress or choose_progress()
    storage = Storage(spec.storage)
    try:
        if spec.model.weights != "untrained" and weights_here(spec.model) is None:
            # Half a gigabyte of weights is not fetched for a misspelt input.
            require_images(spec, storage)
        spec = settle_model(spec, storage)
        fingerprint = take_fingerprint(spec.model, storage)
        opened = open_run(spec, fingerprint.to_dict(), storage, run=run, fresh=fresh)
        if not fingerprint.trained:
            display.note("The model's weights are untrained: its detections mean nothing.")
        if spec.model.weights == "demo":
            display.note(DEMO_NOTE)
        _announce(opened, display)
        session = Session(spec, opened, storage, display, is_trained=fingerprint.trained, load_model=load_model)
        if opened.state != "complete":
            try:
                session.work()
            except RunError as error:
                session.end(cut_short=str(error))
                raise
        return session.end()
    finally:
        display.close()


def _announce(opened: Run, display: ProgressDisplay) -> None:
    if opened.state == "complete":
        display.note(f"Run {opened.name} is complete already; nothing to do.")
    elif opened.state == "resumed":
        left = len(opened.todo())
        display.note(f"Resuming run {opened.name}: {left} of {opened.shard_count} shards to go.")
    else:
        display.note(
            f"Run {opened.name}: {count_of(opened.image_count, 'image')} in {count_of(opened.shard_count, 'shard')}."
        )
        for line in opened.manifest.left_out():
            display.note(f"Of the input, {line}.")
