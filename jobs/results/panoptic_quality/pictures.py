"""Pictures of the images with most mistakes: the truth's segments beside the run's."""

from dataclasses import dataclass

import numpy as np

from htc_model.masks.rle import encode_bitmap
from jobs.results.drawing import DrawnInstance, ImageReader, Side, Style, encode_picture, grey_tile, side_by_side
from jobs.results.drawing.segments import segment_of_row, stuff_segment
from jobs.results.evaluation.rows import RunRows
from jobs.results.image_lookup import ImageRecord
from jobs.results.map_tables import read_rows
from jobs.results.panoptic_quality.result import JudgedImage, PanopticEvaluation
from jobs.results.panoptic_quality.truth import PanopticTruth, known_size, read_segment_png, segment_numbers
from pipeline.output.results import Results
from pipeline.storage.storage import Storage

# Of each of the two halves, in pixels.
LONG_SIDE = 720
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """One of the worst images, drawn.

    jpeg: truth beside the run's segments, or a grey tile. problem: why the image is not shown; None if it is.
    """

    image: JudgedImage
    jpeg: bytes
    problem: str | None


def draw_pictures(evaluation: PanopticEvaluation, truth: PanopticTruth, results: Results) -> list[Picture]:
    """Draw the worst images of an evaluation.

    An image that is gone, changed since the run or was never read is a grey tile that says so.

    Raises:
        SpecError: the store of the images cannot be read at all, such as without its package.
    """
    if not evaluation.worst:
        return []
    rows = RunRows(results, evaluation.run).pictured([each.image_id for each in evaluation.worst])
    places = {image.file_name: place for place, image in enumerate(truth.images.images)}
    reader = ImageReader(results)
    pictures = []
    for image in evaluation.worst:
        row = rows[image.image_id]
        read = reader.read(row)
        style = Style(long_side=LONG_SIDE)
        if read.pixels is None:
            pixels = grey_tile(*style.drawn_size(read.width, read.height), read.problem or "")
        else:
            found = [segment_of_row(each) for each in read_rows(results, "panoptic", ImageRecord(**row))]
            wanted = segments_of_truth(truth, places[image.file_name], results.storage)
            counts = image.counts
            sides = [
                Side(f"truth: {counts.missed} missed", wanted),
                Side(f"{evaluation.run}: {counts.right} right, {counts.wrong} wrong", found),
            ]
            pixels = side_by_side(read.pixels, sides, style)
        jpeg = encode_picture(pixels, "jpeg", quality=_JPEG_QUALITY)
        pictures.append(Picture(image, jpeg, read.problem))
    return pictures


def segments_of_truth(truth: PanopticTruth, place: int, storage: Storage) -> list[DrawnInstance]:
    """Return the segments of an image of the truth, to draw.

    Raises:
        SpecError: its PNG cannot be used.
    """
    image = truth.images.images[place]
    png = read_segment_png(truth.pngs[place], storage, known_size(image), image=image.file_name)
    numbers = segment_numbers(png)
    drawn = []
    for segment in truth.segments[place]:
        mask = numbers == segment.number
        if not np.any(mask):
            continue
        category = truth.categories[segment.label]
        rle = encode_bitmap(mask)
        if category.is_thing:
            label = f"{category.name} (crowd)" if segment.is_crowd else category.name
            drawn.append(DrawnInstance(category.name, mask=rle, label=label))
        else:
            drawn.append(stuff_segment(category.name, rle))
    return drawn
