"""What an input holds, counted without planning a run."""

from dataclasses import dataclass
from itertools import islice

from pipeline.inputs.image_ref import ImageRef
from pipeline.job_spec.job import JobSpec
from pipeline.planning.incremental import IncrementalPlan
from pipeline.planning.input_changes import InputComparison
from pipeline.planning.manifest import Manifest, PartLayout
from pipeline.planning.planner import ManifestCounts, check_not_empty, list_input, settle_shard_images
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class InputSurvey:
    """What `htc plan` tells of an input that nothing has been written for.

    sample: the first images, in order.
    """

    manifest: Manifest
    sample: tuple[ImageRef, ...]


def survey_input(
    spec: JobSpec,
    storage: Storage,
    *,
    sample_images: int = 8,
    incremental: IncrementalPlan | None = None,
    comparison: InputComparison | None = None,
) -> InputSurvey:
    """Count the input as a new run would plan it, and write nothing.

    Args:
        comparison: with a complete run, for which the input may be empty by now; it watches the listing.

    Raises:
        InputError: the input holds no image, or cannot be listed.
    """
    tally = ManifestCounts(incremental=incremental)
    listed = list_input(spec, storage, tally.notes)
    if comparison is not None:
        listed = comparison.watch(listed)
    size, chosen = settle_shard_images(
        spec.compute, listed if incremental is None else incremental.selection.choose(listed)
    )
    tally.layout = PartLayout.of(size)
    refs = tally.count(chosen)
    sample = tuple(islice(refs, sample_images))
    for _ in refs:
        pass
    if incremental is not None:
        tally.deleted = len(incremental.find_deleted())
    is_found = tally.images if incremental is None else incremental.has_listed or tally.deleted
    if not is_found and comparison is None:
        check_not_empty(spec, tally)
    return InputSurvey(tally.manifest(is_planned=True), sample)
