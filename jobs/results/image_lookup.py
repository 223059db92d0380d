"""Finds images of a run and their rows in the tables."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.results.query import read_instances
from pipeline.errors import InputError, NotFoundError
from pipeline.output.layout import run_folder
from pipeline.output.views import query_views
from pipeline.planning.manifest import Manifest, ManifestReader
from pipeline.storage.uris import display_uri, home_path, join

if TYPE_CHECKING:
    import duckdb

    from pipeline.inputs.image_ref import ImageRef
    from pipeline.output.results import Results

# Enough names to find a misspelt one, few enough to compare at once.
MAX_NAMES_COMPARED = 50_000

_COLUMNS = "image_id, uri, status, error, width, height, shard"
_BY_URI = f"""
    SELECT {_COLUMNS} FROM images WHERE run = $run AND (uri = $uri OR ends_with(uri, $ending))
    ORDER BY uri = $uri DESC, uri LIMIT 2
"""  # noqa: S608 - our own column names
# The images with the smallest hashes of their ids: spread over the input, and always the same.
_SAMPLE = f"""
    SELECT * FROM (
        SELECT {_COLUMNS} FROM images WHERE run = $run AND status = 'ok'
        ORDER BY md5(image_id::VARCHAR), uri LIMIT $count
    ) ORDER BY uri
"""  # noqa: S608 - our own column names
_NAMES = f"SELECT uri FROM images WHERE run = $run LIMIT {MAX_NAMES_COMPARED}"  # noqa: S608 - a number


@dataclass(frozen=True)
class ImageRecord:
    """The columns of one row of `images` that drawing needs; width and height in pixels, None if never decoded."""

    image_id: int
    uri: str
    status: str
    error: str | None
    width: int | None
    height: int | None
    shard: int


class ImageLookup:
    """The images of one run: samples or finds some, locates their bytes, reads their instances.

    Raises:
        InputError: there is no run of this name.
    """

    def __init__(self, results: "Results", run: str | None = None) -> None:
        self.run = results.newest_run() if run is None else run
        # Raises InputError for an unknown name.
        results.image_parts(self.run)
        self._results = results
        record = next(record for record in results.records if record.run == self.run)
        self._fingerprint = record.fingerprint
        folder = join(run_folder(results.output_uri, self.run), "manifest")
        self._manifest = ManifestReader(results.storage, folder, Manifest.from_dict(record.manifest))

    @property
    def is_trained(self) -> bool:
        """Whether the run's model had trained weights."""
        return bool(self._fingerprint.get("trained", True))

    def sample(self, count: int) -> list[ImageRecord]:
        """Return `count` of the images with the status ok, always the same, in the order of their URIs.

        Raises:
            InputError: there are none.
        """
        values = {"run": self.run, "count": count}
        images = query_views(
            self._results, lambda database: [ImageRecord(*row) for row in _rows(database, _SAMPLE, values)]
        )
        if not images:
            raise InputError(f"Run {self.run} has no image with the status ok; `htc query` shows the errors.")
        return images

    def find(self, uris: Sequence[str]) -> list[ImageRecord]:
        """Find the image of each URI, or of the end (after a slash) of exactly one image's URI; none twice.

        Raises:
            InputError: there is no such image, or several.
        """
        images = query_views(self._results, lambda database: [self._find_one(database, uri) for uri in uris])
        return list({image.uri: image for image in images}.values())

    def locate(self, image: ImageRecord) -> "ImageRef":
        """Find in the run's manifest where the image's bytes are.

        Raises:
            NotFoundError: the manifest does not name it.
        """
        for ref in self._manifest.read_shard(image.shard).images:
            if display_uri(ref.uri) == image.uri:
                return ref
        raise NotFoundError(f"{image.uri} is not in the manifest of run {self.run}.")

    def instances(self, image: ImageRecord) -> list[dict[str, Any]]:
        """Read the image's rows of `instances`, highest score first."""
        return read_instances(self._results, self.run, image.shard, image.image_id, image.uri)

    def _find_one(self, database: "duckdb.DuckDBPyConnection", uri: str) -> ImageRecord:
        whole = str(home_path(uri).absolute()) if home_path(uri).exists() else uri
        values = {"run": self.run, "uri": whole, "ending": "/" + uri.lstrip("/")}
        found = [ImageRecord(*row) for row in _rows(database, _BY_URI, values)]
        if not found:
            raise InputError(f"Run {self.run} has no image {uri}{self._suggestion(database, uri)}")
        if len(found) > 1 and found[0].uri != whole:
            raise InputError(
                f"{uri} is the end of several uris ({found[0].uri}, {found[1].uri}, ...); give more of it."
            )
        return found[0]

    def _suggestion(self, database: "duckdb.DuckDBPyConnection", uri: str) -> str:
        known = [str(row[0]) for row in _rows(database, _NAMES, {"run": self.run})]
        by_name = {name.rsplit("/", 1)[-1]: name for name in known}
        close = difflib.get_close_matches(uri.rsplit("/", 1)[-1], by_name, n=1)
        if close:
            return f"; did you mean {by_name[close[0]]}?"
        return "; give its whole URI (`htc query` lists them), or name another run with --run."


def _rows(database: "duckdb.DuckDBPyConnection", sql: str, values: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    answer = database.execute(sql, values)
    while rows := answer.fetchmany(1024):
        yield from rows
