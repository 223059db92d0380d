"""Checks after every round: the tables are those of the reference, and nothing else is left behind."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.inputs.image_ref import image_id
from pipeline.output.results import open_results
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local
from tests.chaos.scene import Scene

Row = dict[str, Any]
# Columns that a fault may change without harm, or that differ between two stores with the same files.
UNSTABLE = {"run", "attempts", "image_id", "etag"}
_EXPECTED_FILES = re.compile(
    r"(?:images|instances)/run=[^/]+/(?:part-\d{5,}|parts-\d{5,}-\d{5,})\.parquet"
    r"|runs/[^/]+/(?:(?:run|summary)\.json|manifest/part-\d{5,}\.parquet|errors/error-\d+\.txt)"
)
# Ray's processes detect a dead driver after time-outs of their own.
ORPHANS_END_IN_S = 60.0


@dataclass(frozen=True)
class Tables:
    """Rows by the image's name below the input, without what is unstable."""

    images: dict[str, Row]
    instances: dict[str, list[Row]]


@dataclass(frozen=True)
class Expected:
    """How a round should end.

    says: regular expressions that the log must match.
    commands: how often the command may have been run.
    changed: the images whose rows the fault must change, each with the columns that are compared instead.
    is_met: whether some request must have been faulted; a round without one proves nothing.
    """

    says: tuple[str, ...] = ()
    commands: int = 1
    changed: Mapping[str, Row] = field(default_factory=dict)
    is_met: bool = False


def read_tables(scene: Scene, endpoint_url: str) -> tuple[Tables, list[str]]:
    """Read the tables from the store itself, without the proxy; return them and their inconsistencies."""
    results = open_results(scene.output_uri, Storage(StorageSection(endpoint_url=endpoint_url or None)))
    complaints: list[str] = []
    images, instances = results.images().to_pylist(), results.instances().to_pylist()
    counts = Counter(row["uri"] for row in images)
    complaints += [f"{uri} has {count} rows" for uri, count in counts.items() if count > 1]
    complaints += [f"{row['uri']} has a wrong id" for row in images if row["image_id"] != image_id(row["uri"])]
    found = Counter(row["uri"] for row in instances)
    complaints += [
        f"{row['uri']} should have {row['instances']} instances and has {found[row['uri']]}"
        for row in images
        if row["instances"] != found[row["uri"]]
    ]
    by_name: dict[str, list[Row]] = {}
    for row in instances:
        by_name.setdefault(_name(scene, row), []).append(_stable(scene, row))
    return Tables({_name(scene, row): _stable(scene, row) for row in images}, by_name), complaints


def complaints_of(scene: Scene, endpoint_url: str, reference: Tables, expected: Expected) -> list[str]:
    """Return everything that is wrong after a round; empty when the fault was survived."""
    complaints = []
    if not scene.exit_codes or scene.exit_codes[-1] != 0:
        return [f"exit codes {scene.exit_codes}"]
    if len(scene.exit_codes) > expected.commands:
        complaints.append(f"it took {len(scene.exit_codes)} commands: {scene.exit_codes}")
    tables, wrong = read_tables(scene, endpoint_url)
    complaints += wrong + compare(tables, reference, expected.changed)
    complaints += leftovers(scene, endpoint_url)
    complaints += [f"the log does not say {each!r}" for each in expected.says if not re.search(each, scene.log)]
    if "Traceback" in scene.log:
        complaints.append("a traceback on the screen")
    complaints += [f"still alive: {each}" for each in scene.survivors(ORPHANS_END_IN_S)]
    return complaints


def compare(tables: Tables, reference: Tables, changed: Mapping[str, Row]) -> list[str]:
    """Return the differences from the reference beyond those that the fault must cause."""
    complaints = [f"no row for {name}" for name in reference.images if name not in tables.images]
    complaints += [f"a row too many, {name}" for name in tables.images if name not in reference.images]
    for name in sorted(reference.images.keys() & tables.images.keys()):
        row, wanted = tables.images[name], changed.get(name, reference.images[name])
        differing = [
            f"{column} {row.get(column)!r} for {wanted[column]!r}"
            for column in wanted
            if row.get(column) != wanted[column]
        ]
        if differing:
            reason = f" ({row['error']})" if row.get("error") else ""
            complaints.append(f"{name}: {', '.join(differing)}{reason}")
        elif name not in changed and tables.instances.get(name) != reference.instances.get(name):
            complaints.append(f"{name} has other instances")
    return complaints


def leftovers(scene: Scene, endpoint_url: str) -> list[str]:
    """Return files that no finished run has, shards with one of two parts, and uploads that were never completed."""
    if is_local(scene.output_uri):
        root = Path(scene.output_uri)
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        uploads: list[str] = []
    else:
        names, uploads = _objects(scene.output_uri, endpoint_url)
    sound = {name for name in names if _EXPECTED_FILES.fullmatch(name)}
    complaints = [f"{name} was left behind" for name in sorted(set(names) - sound)]
    complaints += [f"the upload of {key} was left behind" for key in uploads]
    parts = {
        table: {name[len(table) :] for name in sound if name.startswith(table)} for table in ("images", "instances")
    }
    complaints += [f"half a shard, {part}" for part in sorted(parts["images"] ^ parts["instances"])]
    runs = {name.split("/")[1] for name in names if name.startswith("runs/")}
    if len(runs) != 1:
        complaints.append(f"{len(runs)} runs instead of one: {sorted(runs)}")
    summaries = [name for name in names if name.endswith("/summary.json")]
    return complaints + ([] if summaries else ["no summary.json"])


def summary_of(scene: Scene) -> dict[str, Any]:
    """Return the local run's summary.json."""
    (path,) = Path(scene.output_uri).glob("runs/*/summary.json")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _objects(output_uri: str, endpoint_url: str) -> tuple[list[str], list[str]]:
    import fsspec

    client = fsspec.filesystem("s3", endpoint_url=endpoint_url, use_listings_cache=False)
    bucket, _, prefix = output_uri.removeprefix("s3://").partition("/")
    names = [key.removeprefix(f"{bucket}/{prefix}/") for key in client.find(f"{bucket}/{prefix}")]
    answer = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
    return names, [upload["Key"] for upload in answer.get("Uploads", [])]


def _name(scene: Scene, row: Row) -> str:
    return str(row["uri"]).removeprefix(scene.input_uri).lstrip("/")


def _stable(scene: Scene, row: Row) -> Row:
    kept = {column: value for column, value in row.items() if column not in UNSTABLE}
    error = kept.get("error")
    if isinstance(error, str):
        kept["error"] = error.replace(scene.input_uri, "")
    return kept | {"uri": _name(scene, row)}
