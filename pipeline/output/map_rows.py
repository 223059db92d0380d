"""SemanticRow and PanopticRow: the rows of the tables `semantic` and `panoptic`, and how they are built."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from htc_model.masks.panoptic import MergeRules, merge_panoptic
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.job_spec.map_tables import MapTable, PanopticSection
from pipeline.storage.uris import display_uri

if TYPE_CHECKING:
    from htc_model.semantic_classes import SemanticClass
    from htc_model.structures import Detections, Rle
    from pipeline.output.rows import ClassNames


@dataclass(frozen=True, slots=True)
class SemanticRow:
    """One row of `semantic`: all pixels of an image that have one class.

    class_id, class_name: see `htc_model.semantic_classes`. area: pixels. mask: size [height, width] and COCO counts.
    """

    image_id: int
    uri: str
    class_id: int
    class_name: str
    area: int
    mask: dict[str, object]
    model: str


@dataclass(frozen=True, slots=True)
class PanopticRow:
    """One row of `panoptic`: a segment; those of an image do not overlap.

    segment: its number in the image, from 0. category_id, category: of a thing those of its instance, of stuff the
    semantic class's. instance: of a thing the `instance` of its row of `instances`, of stuff None; score likewise.
    bbox: x, y, width, height of the mask in pixels.
    """

    image_id: int
    uri: str
    segment: int
    category_id: int
    category: str
    is_thing: bool
    instance: int | None
    score: float | None
    area: int
    bbox: dict[str, float]
    mask: dict[str, object]
    model: str


MapRow: TypeAlias = SemanticRow | PanopticRow
MapRows: TypeAlias = Mapping[MapTable, Sequence[MapRow]]
"""By table, of the tables that the run has; a table without rows is there, too."""
ROW_KINDS: Mapping[MapTable, type[MapRow]] = {"semantic": SemanticRow, "panoptic": PanopticRow}


def build_map_rows(
    ref: ImageRef,
    detections: "Detections",
    config: "ClassNames",
    classes: "Sequence[SemanticClass]",
    tables: Sequence[MapTable],
    *,
    model: str,
    rules: PanopticSection | None = None,
) -> MapRows:
    """Build an image's rows of the tables of maps.

    Args:
        detections: with semantic regions, most confident first.
        config: of the network; gives the categories of labels. classes: those of the semantic branch, by channel.
        tables: the ones that the run has.
        model: the value of the column `model`.
        rules: what becomes a segment; None for the defaults.

    Raises:
        ValueError: the model has given no semantic map.
    """
    if not tables:
        return {}
    if detections.semantic is None:
        raise ValueError("the model was asked for a semantic map, and has given none")
    rows: dict[MapTable, Sequence[MapRow]] = {}
    if "semantic" in tables:
        rows["semantic"] = _semantic_rows(ref, detections, classes, model)
    if "panoptic" in tables:
        rows["panoptic"] = _panoptic_rows(ref, detections, config, classes, model, rules=rules)
    return rows


def joined(parts: Iterable[MapRows], tables: Sequence[MapTable]) -> MapRows:
    """Join the rows of images, or of parts of a shard, in their order; every table of `tables` is there."""
    rows: dict[MapTable, list[MapRow]] = {table: [] for table in tables}
    for part in parts:
        for table in tables:
            rows[table].extend(part.get(table, ()))
    return rows


def _semantic_rows(
    ref: ImageRef, detections: "Detections", classes: "Sequence[SemanticClass]", model: str
) -> list[SemanticRow]:
    number, uri = image_id(ref.uri), display_uri(ref.uri)
    return [
        SemanticRow(
            image_id=number,
            uri=uri,
            class_id=classes[region.label].class_id,
            class_name=classes[region.label].name,
            area=region.area,
            mask=_mask(region.mask),
            model=model,
        )
        for region in sorted(detections.semantic or (), key=lambda region: classes[region.label].class_id)
    ]


def _panoptic_rows(
    ref: ImageRef,
    detections: "Detections",
    config: "ClassNames",
    classes: "Sequence[SemanticClass]",
    model: str,
    *,
    rules: PanopticSection | None,
) -> list[PanopticRow]:
    number, uri = image_id(ref.uri), display_uri(ref.uri)
    regions = detections.semantic or []
    if not regions:
        return []
    height, width = regions[0].mask["size"]
    found = merge_panoptic(
        detections.scores.tolist(),
        detections.labels.tolist(),
        detections.masks or [],
        # The instances speak for the things.
        {region.label: region.mask for region in regions if classes[region.label].kind == "stuff"},
        size=(height, width),
        rules=None if rules is None else MergeRules(rules.min_score, rules.max_overlap, rules.min_stuff_area),
    )
    rows = []
    for index, segment in enumerate(found):
        if segment.is_thing:
            category_id, category = config.category_ids[segment.label], config.classes[segment.label]
        else:
            category_id, category = classes[segment.label].class_id, classes[segment.label].name
        rows.append(
            PanopticRow(
                image_id=number,
                uri=uri,
                segment=index,
                category_id=category_id,
                category=category,
                is_thing=segment.is_thing,
                instance=segment.instance,
                score=segment.score,
                area=segment.area,
                bbox=dict(zip(("x", "y", "width", "height"), segment.bbox, strict=True)),
                mask=_mask(segment.mask),
                model=model,
            )
        )
    return rows


def _mask(rle: "Rle") -> dict[str, object]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
