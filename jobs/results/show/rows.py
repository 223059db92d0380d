"""What `htc show` draws of an image: its instances, or the segments or regions of its map."""

from collections.abc import Callable, Sequence

from jobs.results.drawing.instances import DrawnInstance, instance_of_row
from jobs.results.drawing.segments import region_of_row, segment_of_row
from jobs.results.image_lookup import ImageLookup, ImageRecord
from jobs.results.map_tables import check_table, read_rows
from jobs.results.show.choice import instance_rule
from jobs.results.show.request import ShowRequest
from pipeline.output.results import Results

ReadDrawn = Callable[[ImageRecord], list[DrawnInstance]]


def reader_of(results: Results, lookup: ImageLookup, images: Sequence[ImageRecord], request: ShowRequest) -> ReadDrawn:
    """Return what reads an image's instances, or of a map its segments or regions; none of an image that failed.

    Raises:
        InputError: the run of an image has no such table.
    """
    table, categories = request.map_table, frozenset(request.categories)
    if table is None:
        rule = instance_rule(lookup, images, request)
        return lambda image: (
            [instance_of_row(row) for row in rule.choose(lookup.instances(image))] if image.status == "ok" else []
        )
    for run in sorted({image.run for image in images}):
        check_table(results, run, table)
    drawn_of = segment_of_row if table == "panoptic" else region_of_row

    def read(image: ImageRecord) -> list[DrawnInstance]:
        found = [drawn_of(row) for row in read_rows(results, table, image)] if image.status == "ok" else []
        return [each for each in found if not categories or each.category in categories]

    return read
