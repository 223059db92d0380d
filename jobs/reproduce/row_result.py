"""What is known of a row: its file rows/NAME.json in the folder of the command."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from jobs.reproduce.coco_folder import VAL2017_CLASSES, VAL2017_IMAGES
from jobs.reproduce.table_rows import TableRow
from pipeline.errors import DamagedFileError
from pipeline.output.json_files import read_json, write_json
from pipeline.runs.summary import RunSummary
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join
from pipeline.text import count_of

KINDS = ("box", "mask")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Speed:
    """Of the session that did most images of the row.

    images: it did. seconds: start included. images_per_s: start included. images_per_worker_s: of one busy worker,
    None where that was not measured. machine, device, precision: as in summary.json.
    """

    images: int
    seconds: float
    images_per_s: float
    images_per_worker_s: float | None
    machine: str
    device: str
    precision: str


@dataclass(frozen=True)
class RowResult:
    """The result of a row, or of its sessions so far.

    weights: as it was given, or the published file's name. weights_sha256: of the fingerprint. run: its name in the
    row's output. speed: None before a session has ended. metrics: for "box" and "mask" COCO's metrics in percent, None
    where there is no such object; empty until the row is scored. images: scored; annotated: in the annotations.
    failed: scored images that could not be read or segmented. classes: scored. notes: of the evaluation. limit: the
    command's. is_published: whether the weights are the published file.
    """

    name: str
    preset: str
    weights: str
    weights_sha256: str
    run: str
    speed: Speed | None
    limit: int | None
    metrics: Mapping[str, Mapping[str, float | None]]
    images: int = 0
    annotated: int = 0
    failed: int = 0
    classes: int = 0
    is_published: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether the row is scored."""
        return bool(self.metrics)

    def caveats(self) -> list[str]:
        """Say why the figures cannot be compared with the published ones; empty where they can."""
        found = []
        if self.limit is not None:
            found.append(f"--limit {self.limit}: {self.images:,} of {count_of(self.annotated, 'annotated image')}")
        elif self.images < self.annotated:
            found.append(f"only {self.images:,} of {count_of(self.annotated, 'annotated image')} are there")
        if self.annotated != VAL2017_IMAGES:
            found.append(
                f"the annotations list {count_of(self.annotated, 'image')}, COCO val2017 has {VAL2017_IMAGES:,}"
            )
        if self.classes != VAL2017_CLASSES:
            found.append(f"{count_of(self.classes, 'class', 'classes')} of COCO's {VAL2017_CLASSES} scored")
        if self.failed:
            found.append(f"{count_of(self.failed, 'image')} failed and count without detections")
        if not self.is_published:
            found.append(f"the weights are {self.weights}, not the published file")
        return found

    def difference(self, row: TableRow, kind: str) -> float | None:
        """Return AP minus the published AP, in points; None where one of them is not known."""
        ours, theirs = self.metrics.get(kind, {}).get("AP"), published_ap(row, kind)
        return None if ours is None or theirs is None else ours - theirs


def published_ap(row: TableRow, kind: str) -> float | None:
    """Return the published AP on COCO val2017, in percent."""
    if row.published is None:
        return None
    return row.published.box_ap if kind == "box" else row.published.mask_ap


def to_percent(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Convert an evaluation's metrics, in [0, 1] or -1 where there is no such object."""
    return {
        kind: {name: None if value < 0 else 100 * value for name, value in of_kind.items()}
        for kind, of_kind in metrics.items()
    }


def speed_of(summary: RunSummary, before: Speed | None) -> Speed | None:
    """Return the speed of the session, or of the one before if that did more images."""
    done = summary.session_images
    if not done or (before is not None and before.images >= done):
        return before
    busy_s = summary.worker_use.get("busy_s")
    is_measured = isinstance(busy_s, int | float) and busy_s > 0
    return Speed(
        images=done,
        seconds=summary.seconds,
        images_per_s=summary.images_per_s,
        images_per_worker_s=done / float(busy_s) if is_measured else None,  # type: ignore[arg-type]
        machine=summary.machine,
        device=summary.device,
        precision=summary.precision,
    )


def result_uri(work: str, name: str) -> str:
    """Return the uri of a row's file."""
    return join(work, "rows", f"{name}.json")


def write_result(storage: Storage, work: str, result: RowResult) -> None:
    """Write a row's file, replacing what was known before."""
    write_json(storage, result_uri(work, result.name), asdict(result))


def load_result(storage: Storage, work: str, name: str) -> RowResult | None:
    """Read a row's file; None when there is none.

    Raises:
        DamagedFileError: it is not what `write_result` wrote.
    """
    uri = result_uri(work, name)
    content: dict[str, Any] | None = read_json(storage, uri)
    if content is None:
        return None
    try:
        result = RowResult(**{each.name: content[each.name] for each in fields(RowResult)})
        speed = None if content["speed"] is None else Speed(**content["speed"])
        return replace(result, speed=speed, notes=tuple(result.notes), metrics=_checked(result.metrics))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{uri} is damaged; remove it, and the row is scored again.") from error


def _checked(metrics: Mapping[str, Mapping[str, float | None]]) -> Mapping[str, Mapping[str, float | None]]:
    return {kind: {name: of_kind[name] for name in of_kind} for kind, of_kind in metrics.items()}
