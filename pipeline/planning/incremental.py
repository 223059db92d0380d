"""What an incremental run knows: the earlier rows, which images to do, and which are gone from the input."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.job_spec.job import JobSpec
from pipeline.output.deletions import write_deletions
from pipeline.output.results import Results
from pipeline.output.run_record import RunRecord, is_of_input
from pipeline.planning.earlier_rows import read_history
from pipeline.planning.selection import RunCompatibility, Selection
from pipeline.storage.storage import Storage

# Rows in a file of marks.
PART_ROWS = 65_536
_LIMITS = ("images.max_pixels", "images.max_bytes")


class IncrementalPlan:
    """The part of planning that looks back; reads all earlier rows when it is built, and writes nothing.

    Attributes:
        selection: chooses from the listing.
    """

    def __init__(
        self, spec: JobSpec, fingerprint: Mapping[str, Any], storage: Storage, *, before: tuple[str, str]
    ) -> None:
        """`before`: the `records.age_order` of the run that is planned; later ones are not looked at.

        Raises:
            SpecError: select.where is wrong.
            DamagedFileError: a file of an earlier run is damaged or missing.
            StorageError: the tables cannot be read.
        """
        self._spec = spec
        self._storage = storage
        self._run = before[1]
        results = Results(spec.output.uri, storage, before=before)
        picked = None
        if spec.select.where is not None:
            # Loads DuckDB.
            from pipeline.planning.where_filter import select_image_ids

            picked = select_image_ids(results, spec.select.where)
        self._rows, history = read_history(results)
        traits = _traits(spec, fingerprint, self._rows.records)
        self.selection = Selection(history, traits, retry=spec.select.retry, picked=picked, storage=storage)

    @property
    def has_listed(self) -> bool:
        """Whether the listing held an image by now."""
        return self.selection.told(0)["listed"] > 0

    @property
    def known_images(self) -> int:
        """Images that earlier runs found in this input, and that are not deleted."""
        return self.selection.history.unseen(self.selection.traits.is_same_input)[0]

    def find_deleted(self) -> NDArray[np.int64]:
        """Return the places in the history of images that are gone; to be asked when all is listed.

        Raises:
            InputError: more are gone than select.max_deleted_share allows.
        """
        if self._spec.input.limit is not None:
            # Nobody knows what is behind the limit.
            return np.empty(0, np.int64)
        known, gone = self.selection.history.unseen(self.selection.traits.is_same_input)
        allowed = self._spec.select.max_deleted_share
        if len(gone) > allowed * known:
            raise InputError(
                f"{len(gone):,} of the {known:,} images that earlier runs found in {self._spec.input.uri} are not "
                f"listed any more, and select.max_deleted_share allows a share of {allowed:g}; see whether the input "
                "is all there, or give --max-deleted-share 1 if they are really gone."
            )
        return gone

    def mark_deleted(self, is_stopped: threading.Event) -> int:
        """Write which images are gone, and return how many; see `find_deleted`."""
        tables = self._rows.resolve_uris(self.selection.history, self.find_deleted())
        return write_deletions(self._storage, self._spec.output.uri, self._run, _in_parts(tables, is_stopped))


def _traits(spec: JobSpec, fingerprint: Mapping[str, Any], records: Sequence[RunRecord]) -> RunCompatibility:
    identity = spec.identity()

    def flags(is_so: Iterator[bool]) -> NDArray[np.bool_]:
        return np.fromiter(is_so, bool, len(records))

    return RunCompatibility(
        flags(
            record.fingerprint == dict(fingerprint)
            and record.identity.get("model.precision") == identity["model.precision"]
            for record in records
        ),
        flags(all(record.identity.get(key) == identity[key] for key in _LIMITS) for record in records),
        flags(is_of_input(record, spec) for record in records),
    )


def _in_parts(tables: Iterator[pa.Table], is_stopped: threading.Event) -> Iterator[pa.Table]:
    """Gather tables into larger ones; ends early when stopped."""
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
