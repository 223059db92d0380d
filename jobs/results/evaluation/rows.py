"""A run's rows as COCO's results, and the classes of its model."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from htc_model.training.annotations import CocoAnnotations
from jobs.results.evaluation.run_images import MatchRule, RunImages
from pipeline.errors import HtcError, InputError
from pipeline.job_spec.job import ModelSection
from pipeline.output.mask_functions import mask_is_valid
from pipeline.output.results import Results
from pipeline.output.views import query_views
from pipeline.weights.cache import weights_here
from pipeline.weights.fingerprint import resolve_config

if TYPE_CHECKING:
    import duckdb

    from htc_model.config import ModelConfig

_INSTANCES = """
    SELECT image_id, category, score, bbox, mask FROM instances
    WHERE run = $run AND image_id IN (SELECT image_id FROM scored_images) ORDER BY image_id, instance
"""
_IMAGES = "SELECT image_id, uri, width, height, status FROM images WHERE run = $run"
# At once as Python objects, of a run that may have millions.
_BATCH_ROWS = 10_000
_CATEGORIES = "SELECT DISTINCT category FROM instances WHERE run = $run ORDER BY category"


def find_images(results: Results, run: str, rule: MatchRule, names: frozenset[str]) -> RunImages:
    """Read the images of a run that a document may mean; see `names_in`."""

    def read(database: "duckdb.DuckDBPyConnection") -> RunImages:
        reader = database.sql(_IMAGES, params={"run": run}).to_arrow_reader(_BATCH_ROWS)
        return RunImages((row for batch in reader for row in batch.to_pylist()), rule, names=names)

    return query_views(results, read)


def read_rows(results: Results, run: str, places: Mapping[int, int]) -> list[dict[str, Any]]:
    """Read the instances of the scored images, and check their masks.

    Raises:
        InputError: a mask is damaged.
    """

    def read(database: "duckdb.DuckDBPyConnection") -> pa.Table:
        database.register("scored_images", pa.table({"image_id": pa.array(places, pa.int64())}))
        return database.sql(_INSTANCES, params={"run": run}).to_arrow_table()

    table = query_views(results, read)
    # pycocotools does not check the counts, and loops forever for some that do not fill the mask.
    with_mask = table.filter(table["mask"].is_valid())
    masks = with_mask["mask"].combine_chunks()
    masks = pa.concat_arrays(masks.chunks) if isinstance(masks, pa.ChunkedArray) else masks
    damaged = np.flatnonzero(~mask_is_valid(masks).to_numpy(zero_copy_only=False)).tolist() if len(masks) else []
    if damaged:
        image = with_mask["image_id"][damaged[0]].as_py()
        raise InputError(
            f"A mask of the image {image} in the tables is damaged ({len(damaged):,} in all): its counts do not fill "
            f"its size. The condition NOT mask_is_valid(mask) finds such rows in `htc query {results.output_uri}`; run "
            "their images again."
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def detected_categories(results: Results, run: str) -> list[str]:
    return query_views(
        results, lambda database: [str(row[0]) for row in database.execute(_CATEGORIES, {"run": run}).fetchall()]
    )


def find_model(results: Results, run: str) -> "ModelConfig | None":
    """Return the configuration of the run's model, from its preset or weights file; None if that is gone."""
    results.check_run(run)
    record = next(record for record in results.records if record.run == run)
    section = record.spec.get("model", {})
    # The record of a later version may hold values that this one does not know; then the annotations' classes decide.
    with contextlib.suppress(HtcError, ValueError):
        model = ModelSection(**{key: section[key] for key in ("preset", "weights") if key in section})
        weights = weights_here(model)
        if model.weights in {"coco", "untrained"} or (weights is not None and weights.is_file()):
            return resolve_config(model, weights)
    return None


def find_detections(
    rows: Sequence[Mapping[str, Any]], annotations: CocoAnnotations, places: Mapping[int, int]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the detections of the scored classes, and how many of which others there are."""
    category_ids = dict(zip(annotations.classes, annotations.category_ids, strict=True))
    detections = []
    others: Counter[str] = Counter()
    for row in rows:
        if row["category"] not in category_ids:
            others[row["category"]] += 1
            continue
        box = row["bbox"]
        detection = {
            "image_id": places[row["image_id"]],
            "category_id": category_ids[row["category"]],
            "score": row["score"],
            "bbox": [box["x"], box["y"], box["width"], box["height"]],
        }
        if row["mask"] is not None:
            detection["segmentation"] = row["mask"]
        detections.append(detection)
    return detections, others
