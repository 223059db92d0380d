"""Which images of a run are in the gallery: all of them, or a sample that is the same every time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

# A fifth of the sample is for failures, and a tenth for images of rare categories.
FAILED_SHARE, RARE_SHARE = 0.2, 0.1
_OF_CATEGORY = 2

_COLUMNS = "run, image_id, uri, etag, bytes, width, height, shard, status, error, instances"
# In the order of a hash of the URI: spread over the input, and always the same.
_FAILED = f"SELECT {_COLUMNS} FROM images WHERE run = $run AND status <> 'ok' ORDER BY md5(uri) LIMIT $count"  # noqa: S608
_OK = f"SELECT {_COLUMNS} FROM images WHERE run = $run AND status = 'ok' ORDER BY md5(uri) LIMIT $count"  # noqa: S608
_RARE = f"""
    SELECT unnest(chosen) FROM (
        SELECT arg_min(uri, md5(uri), {_OF_CATEGORY}) AS chosen, count(*) AS instances
        FROM instances WHERE run = $run GROUP BY category ORDER BY instances, category LIMIT $count
    )
"""  # noqa: S608 - our own number
_BY_URI = f"SELECT {_COLUMNS} FROM images WHERE run = $run AND list_contains($uris, uri) AND status = 'ok'"  # noqa: S608


@dataclass(frozen=True)
class Sample:
    """Images of a run: rows of `images` with the columns that reading them takes, by URI.

    images: how many the run has. failed: how many of those chosen are not ok. sentence: how they were chosen.
    """

    rows: tuple[Mapping[str, Any], ...]
    images: int
    failed: int
    sentence: str


def choose_sample(database: "duckdb.DuckDBPyConnection", run: str, statuses: Mapping[str, int], count: int) -> Sample:
    """Choose at most `count` images of a run.

    Args:
        statuses: all images of the run by status.
    """
    images, ok = sum(statuses.values()), statuses.get("ok", 0)
    failed = min(images - ok, count if not ok else max(int(count * FAILED_SHARE), count - ok))
    rows = _rows(database, _FAILED, {"run": run, "count": failed})
    room = count - len(rows)
    chosen = _rows(database, _OK, {"run": run, "count": ok}) if ok <= room else _with_rare(database, run, room)
    ordered = sorted([*rows, *chosen], key=lambda row: str(row["uri"]))
    return Sample(tuple(ordered), images, len(rows), _sentence(len(ordered), images, len(rows), images - ok))


def _with_rare(database: "duckdb.DuckDBPyConnection", run: str, room: int) -> list[dict[str, Any]]:
    """Choose images that are ok: by their hash, and of each rare category up to two."""
    limit = int(room * RARE_SHARE)
    found = database.execute(_RARE, {"run": run, "count": limit}).fetchall() if limit else []
    uris = list(dict.fromkeys(str(row[0]) for row in found))[:limit]
    rare = _rows(database, _BY_URI, {"run": run, "uris": uris}) if uris else []
    taken = {row["uri"] for row in rare}
    others = _rows(database, _OK, {"run": run, "count": room})
    return [*rare, *(row for row in others if row["uri"] not in taken)][:room]


def _rows(database: "duckdb.DuckDBPyConnection", sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = database.sql(sql, params=dict(values)).to_arrow_table().to_pylist()
    return rows


def _sentence(shown: int, images: int, failed: int, all_failed: int) -> str:
    if not images:
        return "There is no image yet."
    if shown == images:
        return f"All {images:,} images that have their row." if images > 1 else "The only image that has its row."
    words = f"A sample: {shown:,} of {images:,} images, chosen by a hash of their names, so the same every time"
    if failed:
        words += f"; {failed:,} of the {all_failed:,} that are not ok are among them"
    return f"{words}; images of rare categories are preferred for a tenth of the places."


def shards_in_order(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the places of the rows in the order of their shards, in which they are read with the least lists."""
    return sorted(range(len(rows)), key=lambda place: (rows[place]["shard"], place))
