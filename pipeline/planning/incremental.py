"""IncrementalPlan: history, selection and deletions of an incremental run."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.job_spec.job import CHOICE_KEYS, InputSection, SelectSection
from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.output.deletions import write_deletions
from pipeline.output.results import Results
from pipeline.output.run_record import RunRecord, is_of_input
from pipeline.planning.earlier_rows import read_history
from pipeline.planning.selection import RunCompatibility, Selection
from pipeline.storage.storage import Storage

# Deletion records in a part.
PART_ROWS = 65_536
_MAPS = tuple(f"model.{table}" for table in MAP_TABLES)
_LIMITS = ("images.max_pixels", "images.max_bytes")
# `ModelFingerprint` holds these as they are computed: the preset of the weights, the views of `augment`.
_IN_FINGERPRINT = (
    "model.preset",
    "model.score_threshold",
    "model.max_detections",
    "model.suppression",
    "model.augment",
    "model.options",
    "model.ensemble.",
    "tiles",
)


@dataclass(frozen=True)
class NewRun:
    """The run that is planned, as far as the earlier runs are compared with it.

    created, name: see `RunRecord`; runs that are not older are ignored. fingerprint: of its model.
    identity: see `JobSpec.identity`.
    """

    created: str
    name: str
    fingerprint: Mapping[str, Any]
    identity: Mapping[str, object]


class IncrementalPlan:
    """The part of planning that uses earlier runs; reads all their rows in its constructor, and writes nothing there.

    Attributes:
        selection: chooses from the listing.
    """

    def __init__(
        self, section: InputSection, select: SelectSection, storage: Storage, output_uri: str, *, run: NewRun
    ) -> None:
        """Read what earlier runs know of each image.

        Raises:
            SpecError: select.where is wrong.
            DamagedFileError: a file of an earlier run is damaged or missing.
            StorageError: the tables cannot be read.
        """
        self._section = section
        self._max_deleted_share = select.max_deleted_share
        self._storage = storage
        self._output_uri = output_uri
        self._run = run.name
        results = Results(output_uri, storage, before=(run.created, run.name))
        where_ids = None
        if select.where is not None:
            # Loads DuckDB.
            from pipeline.planning.where_filter import select_image_ids

            where_ids = select_image_ids(results, select.where)
        self._rows, history = read_history(results)
        compatibility = _compare_runs(section, run, self._rows.records)
        self.selection = Selection(history, compatibility, retry=select.retry, where_ids=where_ids, storage=storage)

    @property
    def has_listed(self) -> bool:
        """Whether the listing has held an image so far."""
        return self.selection.counts_dict(0)["listed"] > 0

    @property
    def known_images(self) -> int:
        """Images that earlier runs found in this input, and that are not deleted."""
        return self._find_unlisted()[0]

    def find_deleted(self) -> NDArray[np.int64]:
        """Return the places in the history of the images that are gone; call it when the whole input is listed.

        Raises:
            InputError: more are gone than select.max_deleted_share allows.
        """
        if self._section.limit is not None:
            # What lies beyond the limit is not listed, and may still be there.
            return np.empty(0, np.int64)
        known, gone = self._find_unlisted()
        allowed = self._max_deleted_share
        if len(gone) > allowed * known:
            raise InputError(
                f"{len(gone):,} of the {known:,} images that earlier runs found in {self._section.uri} are not "
                f"listed any more, and select.max_deleted_share allows a share of {allowed:g}; check whether the input "
                "is complete, or give --max-deleted-share 1 if they are really gone."
            )
        return gone

    def record_deletions(self, is_stopped: threading.Event) -> int:
        """Write the deletion records of the images that are gone, and return their number; see `find_deleted`.

        Args:
            is_stopped: once it is set, no further part is written.
        """
        tables = self._rows.resolve_uris(self.selection.history, self.find_deleted())
        return write_deletions(self._storage, self._output_uri, self._run, _in_parts(tables, is_stopped))

    def _find_unlisted(self) -> tuple[int, NDArray[np.int64]]:
        return self.selection.history.not_listed(self.selection.compatibility.is_same_input)


def _compare_runs(section: InputSection, run: NewRun, records: Sequence[RunRecord]) -> RunCompatibility:
    """Compare earlier runs, oldest first, with the new one."""

    def flags(is_so: Iterator[bool]) -> NDArray[np.bool_]:
        return np.fromiter(is_so, bool, len(records))

    return RunCompatibility(
        is_same_model=flags(
            record.fingerprint == dict(run.fingerprint)
            and _settings(record.identity) == _settings(run.identity)
            # An earlier run may have more tables, and lacks none.
            and all(record.identity.get(key) == run.identity.get(key) for key in _MAPS if run.identity.get(key))
            for record in records
        ),
        is_same_limits=flags(
            all(record.identity.get(key) == run.identity[key] for key in _LIMITS) for record in records
        ),
        is_same_input=flags(is_of_input(record, section) for record in records),
    )


def _settings(identity: Mapping[str, object]) -> dict[str, object]:
    """Return what an image's results depend on beside the model, the limits and the tables that are asked for."""
    others = {*CHOICE_KEYS, *_LIMITS, *_MAPS}
    return {key: value for key, value in identity.items() if key not in others and not key.startswith(_IN_FINGERPRINT)}


def _in_parts(tables: Iterator[pa.Table], is_stopped: threading.Event) -> Iterator[pa.Table]:
    """Join small tables into larger ones; ends early when stopped."""
    kept: list[pa.Table] = []
    count = 0
    for table in tables:
        if is_stopped.is_set():
            return
        kept.append(table)
        count += len(table)
        if count >= PART_ROWS:
            yield pa.concat_tables(kept)
            kept, count = [], 0
    if count:
        yield pa.concat_tables(kept)
