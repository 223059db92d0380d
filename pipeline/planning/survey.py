"""Survey of an input: its images counted as a new run would plan them, without writing anything."""

from dataclasses import dataclass
from itertools import islice

from pipeline.inputs.image_ref import ImageRef
from pipeline.job_spec.job import InputSection
from pipeline.planning.incremental import IncrementalPlan
from pipeline.planning.input_changes import InputComparison
from pipeline.planning.manifest import Manifest, PartLayout
from pipeline.planning.planner import ManifestCounts, list_input, no_images_error
from pipeline.planning.shard_size import ShardSizing
from pipeline.planning.size_sample import SizeSample
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class InputSurvey:
    """What `htc plan` reports of an input.

    manifest: the one that a new run would write. sample: the first images, in order.
    """

    manifest: Manifest
    sample: tuple[ImageRef, ...]


def survey_input(
    section: InputSection,
    storage: Storage,
    output_uri: str,
    *,
    sizing: ShardSizing,
    sample_images: int = 8,
    incremental: IncrementalPlan | None = None,
    comparison: InputComparison | None = None,
    size_sample: SizeSample | None = None,
) -> InputSurvey:
    """Count the input as a new run would plan it, and write nothing.

    Args:
        section: the input. output_uri: the run's own output, which is not input.
        incremental: chooses from the listing; None for a full run.
        comparison: follows the listing and compares it with a complete run. The input may be empty then.
        size_sample: follows the images that a new run would have.

    Raises:
        InputError: the input holds no image, or cannot be listed.
    """
    counts = ManifestCounts(incremental=incremental)
    listed = list_input(section, storage, output_uri, counts.notes)
    if comparison is not None:
        listed = comparison.follow(listed)
    size, chosen = sizing.choose(listed if incremental is None else incremental.selection.choose(listed))
    counts.layout = PartLayout.of(size)
    refs = counts.count(chosen if size_sample is None else size_sample.follow(chosen))
    sample = tuple(islice(refs, sample_images))
    for _ in refs:
        pass
    if incremental is not None:
        counts.deleted = len(incremental.find_deleted())
    is_found = counts.images if incremental is None else incremental.has_listed or counts.deleted
    if not is_found and comparison is None:
        raise no_images_error(section, counts.notes)
    return InputSurvey(counts.manifest(is_planned=True), sample)
