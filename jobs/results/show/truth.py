"""The truth that `htc show --truth` draws beside a run's detections."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from htc_model.training.annotation_parsing import to_rle
from htc_model.training.annotations import AnnotationError, CocoAnnotations, ObjectAnnotation
from htc_model.training.coco_reader import read_annotations
from jobs.results.drawing.instances import DrawnInstance
from jobs.results.evaluation.panoptic import is_panoptic, things_of
from jobs.results.evaluation.run_images import MatchRule, RunImages
from jobs.results.panoptic_quality.pictures import segments_of_truth
from jobs.results.panoptic_quality.truth import PanopticTruth, check_panoptic, read_panoptic_truth
from pipeline.errors import SpecError
from pipeline.inputs.coco_files import read_coco
from pipeline.storage.uris import absolute_uri
from pipeline.text import count_of

if TYPE_CHECKING:
    from jobs.results.image_lookup import ImageLookup
    from pipeline.output.results import Results


@dataclass(frozen=True)
class ShownTruth:
    """The annotated images of a run.

    places: index in `annotations.images` by image_id. notes: sentences on how the file was read.
    """

    annotations: CocoAnnotations
    places: dict[int, int]
    notes: tuple[str, ...]

    def instances(self, image_id: int, categories: frozenset[str]) -> list[DrawnInstance]:
        """Return an image's objects to draw, of these categories if there are any; crowds are named as such."""
        image = self.annotations.images[self.places[image_id]]
        drawn = []
        for number, entry in enumerate(image.objects):
            name = self.annotations.classes[entry.label]
            if not categories or name in categories:
                drawn.append(_drawn(entry, name, number, image.height, image.width))
        return drawn


@dataclass(frozen=True)
class ShownSegments:
    """The images of a panoptic truth in a run; `places`, `notes` as of `ShownTruth`."""

    truth: PanopticTruth
    places: dict[int, int]
    notes: tuple[str, ...]
    results: "Results"

    def instances(self, image_id: int, categories: frozenset[str]) -> list[DrawnInstance]:
        """Return an image's segments to draw, of these categories if there are any."""
        drawn = segments_of_truth(self.truth, self.places[image_id], self.results.storage)
        return [each for each in drawn if not categories or each.category in categories]


def _drawn(entry: ObjectAnnotation, name: str, number: int, height: int, width: int) -> DrawnInstance:
    return DrawnInstance(
        category=name,
        box_xywh=entry.bbox_xywh,
        mask=None if entry.segmentation is None else to_rle(entry.segmentation, (height, width)),
        number=number,
        label=f"{name} (crowd)" if entry.is_crowd else name,
    )


def read_shown_truth(results: "Results", lookup: "ImageLookup", uri: str, rule: MatchRule) -> ShownTruth:
    """Read COCO annotations, and find their images in a run by a rule, as `htc evaluate` does.

    Raises:
        SpecError: the file cannot be read, or is no COCO annotations.
        InputError: none of its images is in the run, or they are of another size.
    """
    images = RunImages(lookup.rows(["image_id", "uri", "width", "height", "status"]), rule)
    document = read_coco(uri, results.storage)
    notes = []
    if is_panoptic(document):
        document, note = things_of(document, absolute_uri(uri), results.storage)
        notes.append(note)
    try:
        annotations = read_annotations(document, keeps_empty_images=True, is_truth=True, find_size=images.find_size)
    except AnnotationError as error:
        raise SpecError(f"{uri}: {error}") from error
    matches = images.match(annotations, uri, lookup.run)
    images.refuse_other_sizes(annotations, matches.places, uri)
    if annotations.bad:
        notes.append(f"{uri}: {count_of(len(annotations.bad), 'flawed annotation')} left out ({annotations.bad[0]}).")
    return ShownTruth(annotations, dict(matches.places), (*notes, *images.notes))


def read_shown_segments(results: "Results", lookup: "ImageLookup", uri: str, rule: MatchRule) -> ShownSegments:
    """Read a panoptic truth, and find its images in a run by a rule, as `htc evaluate --panoptic` does.

    Raises:
        SpecError: the file cannot be read, or is not in the panoptic format.
        InputError: none of its images is in the run, or they are of another size.
    """
    images = RunImages(lookup.rows(["image_id", "uri", "width", "height", "status"]), rule)
    document = read_coco(uri, results.storage)
    check_panoptic(document, uri)
    truth = read_panoptic_truth(document, uri, images.find_size)
    matches = images.match(truth.images, uri, lookup.run)
    images.refuse_other_sizes(truth.images, matches.places, uri)
    return ShownSegments(truth, dict(matches.places), tuple(images.notes), results)
