"""A run's rows as COCO's results, and the classes of its model."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from htc_model.class_maps import ensemble_config
from htc_model.training.annotations import CocoAnnotations
from jobs.results.evaluation.run_images import MatchRule, RunImages
from jobs.results.evaluation.truth import listed
from pipeline.errors import HtcError, InputError
from pipeline.job_spec.model import ModelSection
from pipeline.output.mask_functions import mask_is_valid
from pipeline.output.results import Results
from pipeline.output.views import query_views
from pipeline.text import count_of
from pipeline.weights.cache import weights_here
from pipeline.weights.fingerprint import resolve_config

if TYPE_CHECKING:
    import duckdb

    from htc_model.config import ModelConfig

# The name that stands for the newest rows of each image, whichever run wrote them; see `htc export`.
CURRENT = "current"
# At once as Python objects, of a run that may have millions.
_BATCH_ROWS = 10_000
# At once: their runs fit the processor's cache, which makes it eight times as fast as all of 5,000 photos at once.
_CHECKED_MASKS = 1024
_PICTURED = "run, image_id, uri, shard, status, error, etag, bytes, width, height"


@dataclass(frozen=True)
class KnownModel:
    """What evaluating needs of a model: the names of its classes, and whether it predicts masks."""

    classes: tuple[str, ...]
    has_masks: bool


class RunRows:
    """The rows of one run, or of the views `current` and `current_instances`.

    Attributes:
        name: the run's, or "current".

    Raises:
        InputError: there is no such run.
    """

    def __init__(self, results: Results, run: str | None) -> None:
        """Choose; None takes the newest run that has images."""
        self.name = run or results.newest_run()
        self._results = results
        self._is_current = self.name == CURRENT and CURRENT not in results.runs()
        if self._is_current:
            self._images, self._instances, self._values = "current", "current_instances", {}
        else:
            results.check_run(self.name)
            values = {"run": self.name}
            self._images, self._instances, self._values = (
                "(SELECT * FROM images WHERE run = $run)",
                "(SELECT * FROM instances WHERE run = $run)",
                values,
            )

    def images(self, rule: MatchRule, names: frozenset[str]) -> RunImages:
        """Read the images that a document may mean; see `names_in`."""
        sql = f"SELECT image_id, uri, width, height, status FROM {self._images}"  # noqa: S608  # nosec B608

        def read(database: "duckdb.DuckDBPyConnection") -> RunImages:
            reader = database.sql(sql, params=self._values).to_arrow_reader(_BATCH_ROWS)
            return RunImages((row for batch in reader for row in batch.to_pylist()), rule, names=names)

        return query_views(self._results, read)

    def pictured(self, image_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Read what finding the bytes of some images needs, by image_id."""
        sql = f"SELECT {_PICTURED} FROM {self._images} WHERE image_id IN (SELECT image_id FROM wanted)"  # noqa: S608  # nosec B608
        return {row["image_id"]: row for row in self._of_images(sql, image_ids).to_pylist()}

    def instances(self, image_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Read the instances of some images, in the order of image_id and instance, and check their masks.

        Raises:
            InputError: a mask is damaged.
        """
        sql = (
            f"SELECT image_id, category, score, bbox, mask FROM {self._instances} "  # noqa: S608  # nosec B608
            "WHERE image_id IN (SELECT image_id FROM wanted) ORDER BY image_id, instance"
        )
        table = self._of_images(sql, image_ids)
        # pycocotools does not check the counts, and loops forever for some that do not fill the mask.
        with_mask = table.filter(table["mask"].is_valid())
        damaged = _damaged(with_mask["mask"])
        if damaged:
            image = with_mask["image_id"][damaged[0]].as_py()
            raise InputError(
                f"A mask of the image {image} in the tables is damaged ({len(damaged):,} in all): its counts do not "
                f"fill its size. The condition NOT mask_is_valid(mask) finds such rows in "
                f"`htc query {self._results.output_uri}`; run their images again."
            )
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def categories(self) -> list[str]:
        """Return the names of all categories that were detected."""
        return self._column(f"SELECT DISTINCT category FROM {self._instances} ORDER BY category")  # noqa: S608  # nosec B608

    def model(self) -> KnownModel | None:
        """Return the run's model, of several runs what they know together; None if one is not on this machine."""
        models = [find_model(self._results, run) for run in self.runs()]
        known = [model for model in models if model is not None]
        if not known or len(known) < len(models):
            return None
        classes = dict.fromkeys(name for model in known for name in model.classes)
        return KnownModel(tuple(classes), any(model.has_masks for model in known))

    def progress(self) -> list[str]:
        """Return a sentence if the run is not finished, or if the rows are of several runs."""
        if self._is_current:
            runs = self.runs()
            return [f"Scored are the newest rows of each image, of {count_of(len(runs), 'run')} ({listed(runs)})."]
        record = next(record for record in self._results.records if record.run == self.name)
        done = self._results.committed_shards(self.name)
        if record.is_planned and done >= record.shard_count:
            return []
        return [
            f"Run {self.name} is not finished ({done:,} of {count_of(record.shard_count, 'shard')}"
            f"{'' if record.is_planned else ' listed so far'}); its images without a row are not scored yet."
        ]

    def runs(self) -> list[str]:
        """Return the runs whose rows these are."""
        return self._column("SELECT DISTINCT run FROM current ORDER BY run") if self._is_current else [self.name]

    def by_run(self, image_ids: Sequence[int]) -> dict[str, list[int]]:
        """Return which of some images are of which run."""
        if not self._is_current:
            return {self.name: list(image_ids)}
        sql = "SELECT run, list(image_id) FROM current WHERE image_id IN (SELECT image_id FROM wanted) GROUP BY run"
        table = self._of_images(f"{sql} ORDER BY run", image_ids)
        return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))

    def _column(self, sql: str) -> list[str]:
        def read(database: "duckdb.DuckDBPyConnection") -> list[str]:
            return [str(row[0]) for row in database.execute(sql, self._values).fetchall()]

        return query_views(self._results, read)

    def _of_images(self, sql: str, image_ids: Sequence[int]) -> pa.Table:
        """Run a query with the table `wanted` of some image ids."""

        def read(database: "duckdb.DuckDBPyConnection") -> pa.Table:
            database.register("wanted", pa.table({"image_id": pa.array(image_ids, pa.int64())}))
            return database.sql(sql, params=self._values).to_arrow_table()

        return query_views(self._results, read)


def _damaged(masks: pa.ChunkedArray) -> list[int]:
    """Return the places of masks whose counts do not fill their size."""
    places: list[int] = []
    done = 0
    for chunk in masks.chunks:
        for begin in range(0, len(chunk), _CHECKED_MASKS):
            is_valid = mask_is_valid(chunk.slice(begin, _CHECKED_MASKS)).to_numpy(zero_copy_only=False)
            places += (np.flatnonzero(~is_valid) + done + begin).tolist()
        done += len(chunk)
    return places


def find_model(results: Results, run: str) -> "ModelConfig | None":
    """Return the configuration of a run's model, from its preset or weights file; None if that is gone."""
    record = next(record for record in results.records if record.run == run)
    section = record.spec.get("model", {})
    # The record of a later version may hold values that this one does not know; then the annotations' classes decide.
    with contextlib.suppress(HtcError, ValueError):
        known = ("preset", "weights", "ensemble")
        model = ModelSection.model_validate({key: section[key] for key in known if section.get(key) is not None})
        configs = []
        for member in model.members:
            weights = weights_here(member)
            if member.weights not in {"coco", "untrained"} and (weights is None or not weights.is_file()):
                return None
            configs.append(resolve_config(member, weights))
        return configs[0] if model.ensemble is None else ensemble_config(configs)
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
