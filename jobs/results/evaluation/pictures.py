"""Pictures of the worst images: truth beside detections, what was found and what was not in two colours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from htc_model.training.annotation_parsing import to_rle
from htc_model.training.annotations import ObjectAnnotation
from jobs.results.drawing import DrawnInstance, ImageReader, Side, Style, encode_picture, grey_tile, side_by_side
from jobs.results.evaluation.result import WorstImage
from jobs.results.evaluation.rows import RunRows
from jobs.results.evaluation.score import Judgement
from pipeline.output.results import Results

# Of each of the two halves, in pixels.
LONG_SIDE = 720
_JPEG_QUALITY = 82
# Okabe and Ito's blue and vermilion, which people of any colour vision distinguish (jfly.uni-koeln.de/color), and grey.
_RIGHT, _WRONG, _IGNORED = (0, 114, 178), (213, 94, 0), (120, 120, 120)


@dataclass(frozen=True)
class Picture:
    """One of the worst images, drawn.

    jpeg: truth beside detections, or a grey tile. problem: why the image is not shown; None if it is.
    """

    image: WorstImage
    jpeg: bytes
    problem: str | None


def draw_pictures(judgement: Judgement, results: Results) -> list[Picture]:
    """Draw the worst images of an evaluation.

    An image that is gone, changed since the run or was never read is a grey tile that says so.

    Raises:
        SpecError: the store of the images cannot be read at all, such as without its package.
    """
    worst = judgement.evaluation.worst
    if not worst:
        return []
    rows = RunRows(results, judgement.evaluation.run).pictured([each.image_id for each in worst])
    reader = ImageReader(results)
    return [_draw(judgement, each, rows[each.image_id], reader) for each in worst]


def _draw(judgement: Judgement, image: WorstImage, row: Mapping[str, Any], reader: ImageReader) -> Picture:
    read = reader.read(row)
    style = Style(long_side=LONG_SIDE)
    if read.pixels is None:
        pixels = grey_tile(*style.drawn_size(read.width, read.height), read.problem or "")
    else:
        mistakes = image.mistakes
        sides = [
            Side(f"truth: {mistakes.missed} missed", list(_truth(judgement, mistakes.image))),
            Side(
                f"detections: {mistakes.right} right, {mistakes.wrong} wrong",
                list(_detections(judgement, mistakes.image)),
            ),
        ]
        pixels = side_by_side(read.pixels, sides, style)
    return Picture(image, encode_picture(pixels, "jpeg", quality=_JPEG_QUALITY), read.problem)


def _truth(judgement: Judgement, image: int) -> Iterator[DrawnInstance]:
    """Yield an image's objects; crowds are grey."""
    annotated = judgement.truth.images[image]
    overlaps, sure = judgement.overlaps, judgement.sure
    places = (overlaps.obj_image == image).nonzero()[0]
    # Objects lie in the order of the annotations, crowds left out: and, for masks, objects without one.
    first = sum(len(each.objects) for each in judgement.truth.images[:image])
    is_found = {int(overlaps.obj_row[place]) - first: bool(sure.detection_of[place] >= 0) for place in places}
    for number, entry in enumerate(annotated.objects):
        name = judgement.truth.classes[entry.label]
        if number not in is_found:
            colour, label = _IGNORED, f"{name} (crowd)" if entry.is_crowd else f"{name} (no mask)"
        elif is_found[number]:
            colour, label = _RIGHT, name
        else:
            colour, label = _WRONG, f"{name} missed"
        yield DrawnInstance(name, None, entry.bbox_xywh, _mask(entry, annotated.height, annotated.width),
                            colour=colour, label=label)  # fmt: skip


def _mask(entry: ObjectAnnotation, height: int, width: int) -> Any:
    return None if entry.segmentation is None else to_rle(entry.segmentation, (height, width))


def _detections(judgement: Judgement, image: int) -> Iterator[DrawnInstance]:
    """Yield an image's detections that reach the score."""
    overlaps, sure, truth = judgement.overlaps, judgement.sure, judgement.truth
    is_shown = (overlaps.det_image == image) & (overlaps.det_score >= judgement.evaluation.min_score)
    for place in is_shown.nonzero()[0]:
        detection = judgement.detections[int(overlaps.det_row[place])]
        name = truth.classes[int(overlaps.det_label[place])]
        text = f"{name} {detection['score']:.2f}"
        if sure.object_of[place] >= 0:
            colour, label = _RIGHT, text
        elif sure.is_false[place]:
            colour, label = _WRONG, f"{text} wrong"
        else:
            colour, label = _IGNORED, f"{text} (crowd)"
        yield DrawnInstance(name, detection["score"], tuple(detection["bbox"]), detection.get("segmentation"),
                            colour=colour, label=label)  # fmt: skip
