"""CVAT's format "CVAT for images 1.1": one XML file with every mask as run lengths of its box."""

from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np

from jobs.results.export.selection import bitmap_of
from jobs.results.export.writers import ExportFolder, Progress
from pipeline.errors import SpecError

if TYPE_CHECKING:
    from jobs.results.export.selection import ExportedImage, ExportedInstance, Selection

FILE = "annotations.xml"


def write_cvat(selection: "Selection", folder: ExportFolder, progress: Progress, *, is_beside: bool = False) -> None:
    """Write `annotations.xml`; the score is an attribute of each shape.

    Args:
        is_beside: whether the images are in `images/`, where two that differ by suffix only got different names.
    """
    try:
        with folder.file(FILE).open("w", encoding="utf-8") as sink:
            sink.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
            labels = "".join(
                f"<label><name>{_text(each.name)}</name><attributes><attribute><name>score</name>"
                "<mutable>False</mutable><input_type>number</input_type><default_value>0</default_value>"
                "<values>0;1;0.0001</values></attribute></attributes></label>\n"
                for each in selection.categories
            )
            sink.write(f"<meta><task><size>{selection.images}</size><labels>\n{labels}</labels></task></meta>\n")
            for image in selection.by_image():
                head = f'<image id="{image.number - 1}" name={quoteattr(image.file if is_beside else image.name)}'
                sink.write(f'{head} width="{image.width}" height="{image.height}">\n')
                sink.writelines(_shape(image, each) for each in image.instances if each.area != 0)
                folder.counts["{n} empty masks left out"] += sum(each.area == 0 for each in image.instances)
                sink.write("</image>\n")
                progress(len(image.instances))
            sink.write("</annotations>\n")
    except OSError as error:
        raise SpecError(f"{folder.final / FILE} cannot be written: {error.strerror or error}.") from error


def _shape(image: "ExportedImage", instance: "ExportedInstance") -> str:
    name = quoteattr(instance.category.name)
    score = f'<attribute name="score">{instance.score:.4f}</attribute>'
    if instance.mask is None:
        x, y, width, height = instance.bbox_xywh
        corners = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + width:.2f}" ybr="{y + height:.2f}"'
        return f'<box label={name} source="auto" occluded="0" {corners} z_order="0">{score}</box>\n'
    bitmap = bitmap_of(image, instance)
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    part = bitmap[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    # Row by row, background first.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], part.ravel(), [not part.ravel()[-1]]])))
    lengths = np.diff(np.concatenate([[0], edges]))
    runs = ", ".join(map(str, lengths.tolist()))
    place = f'left="{left}" top="{top}" width="{part.shape[1]}" height="{part.shape[0]}"'
    # Overlapping masks: the more confident one lies above.
    order = f'z_order="{-instance.instance}"'
    return f'<mask label={name} source="auto" occluded="0" rle="{runs}" {place} {order}>{score}</mask>\n'


def _text(name: str) -> str:
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
