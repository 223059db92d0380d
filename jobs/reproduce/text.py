"""The table as text, JSON and CSV; average precision in percent, differences in points."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs.reproduce.row_result import KINDS, METRICS, RowResult, published_ap
from jobs.reproduce.table_rows import TableRow
from jobs.results.formats import QueryResult, write_answer
from jobs.terminal.console import Alignment, write_json, write_line, write_table

Results = Mapping[str, RowResult]
# Mask AP of HTC over Cascade Mask R-CNN in table 1 of arXiv:1901.07518, on COCO test-dev, 20 epochs each.
GAINS: tuple[tuple[str, str, str, float], ...] = (
    ("ResNet-50", "cascade_mask_rcnn_r50_fpn_1x", "htc_r50_fpn_1x", 1.5),
    ("ResNet-101", "cascade_mask_rcnn_r101_fpn_1x", "htc_r101_fpn_20e", 1.3),
    ("ResNeXt-101", "cascade_mask_rcnn_x101_64x4d_fpn_1x", "htc_x101_64x4d_fpn_20e", 1.1),
)


def write_text(rows: Sequence[TableRow], results: Results, problems: Mapping[str, str]) -> None:
    """Write a line for each row and kind, what cannot be compared and why, and HTC's gain."""
    lines = [line for row in rows for line in _lines(row, results.get(row.name))]
    columns = ["row", "", "AP", "published", "difference", *METRICS[1:], "images/s", "a worker", "published", "images"]
    alignments: list[Alignment] = ["left", "left", *(["right"] * (len(columns) - 2))]  # type: ignore[list-item]
    write_table(columns, lines, alignments=alignments)
    write_line("AP in percent; published: MMDetection's figures on COCO val2017, images/s of the network on one V100.")
    write_line("images/s: of the whole run, start included; a worker: while it is busy, reading and masks included.")
    for machine in dict.fromkeys(filter(None, map(_machine, results.values()))):
        write_line(f"Measured on {machine}.")
    for row in rows:
        result = results.get(row.name)
        if row.name in problems:
            write_line(f"- {row.name}: {problems[row.name]}")
        elif result is None:
            write_line(f"- {row.name}: not done yet.")
        elif caveats := result.caveats():
            write_line(f"* {row.name} is not comparable: {'; '.join(caveats)}.")
    _write_gains(rows, results)


def _lines(row: TableRow, result: RowResult | None) -> Iterator[list[str]]:
    kinds = [kind for kind in KINDS if kind == "box" or published_ap(row, kind) is not None or row.published is None]
    for number, kind in enumerate(kinds):
        of_kind: Mapping[str, float | None] = {} if result is None else result.metrics.get(kind, {})
        mark = "*" if result is not None and result.caveats() else ""
        difference = None if result is None else result.difference(row, kind)
        speed = None if result is None or number else result.speed
        theirs = None if row.published is None or number else row.published.images_per_s
        yield [
            "" if number else row.name,
            kind,
            _one_digit(of_kind.get("AP")),
            _one_digit(published_ap(row, kind)),
            "" if difference is None else f"{difference:+.1f}{mark}",
            *(_one_digit(of_kind.get(name)) for name in METRICS[1:]),
            "" if speed is None else _rate(speed.images_per_s),
            "" if speed is None else _rate(speed.images_per_worker_s),
            "" if theirs is None else _rate(theirs),
            "" if result is None or number else f"{result.images:,}{mark}",
        ]


def _one_digit(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _machine(result: RowResult) -> str:
    speed = result.speed
    if speed is None:
        return ""
    return ", ".join(filter(None, [speed.machine or speed.device, speed.precision]))


def _write_gains(rows: Sequence[TableRow], results: Results) -> None:
    by_name = {row.name: row for row in rows}
    lines = []
    for backbone, cascade, htc, paper in GAINS:
        ours = _gain([results[name].metrics.get("mask", {}).get("AP") for name in (cascade, htc) if name in results])
        theirs = _gain([published_ap(by_name[name], "mask") for name in (cascade, htc) if name in by_name])
        if ours is not None and theirs is not None:
            is_marked = any(results[name].caveats() for name in (cascade, htc))
            lines.append(
                [backbone, cascade, htc, f"{ours:+.1f}{'*' if is_marked else ''}", f"{theirs:+.1f}", f"{paper:+.1f}"]
            )
    if lines:
        columns = ["mask AP, HTC over Cascade", "", "", "here", "published", "paper (test-dev)"]
        write_table(columns, lines, alignments=["left", "left", "left", "right", "right", "right"])


def _gain(pair: Sequence[float | None]) -> float | None:
    return pair[1] - pair[0] if len(pair) == 2 and pair[0] is not None and pair[1] is not None else None


def write_rows_json(
    rows: Sequence[TableRow], results: Results, problems: Mapping[str, str], *, coco: str, limit: int | None
) -> None:
    """Write everything that is known of the rows; docs/reproduce.md lists the keys."""
    write_json(
        {
            "table": "table1",
            "coco": coco,
            "limit": limit,
            "rows": [_row_dict(row, results.get(row.name), problems.get(row.name)) for row in rows],
        }
    )


def _row_dict(row: TableRow, result: RowResult | None, problem: str | None) -> dict[str, Any]:
    published = row.published
    caveats = [] if result is None else result.caveats()
    return {
        "name": row.name,
        "preset": row.preset,
        "state": "failed" if problem else "not_done" if result is None else "done",
        "problem": problem,
        "is_comparable": result is not None and published is not None and not caveats,
        "caveats": caveats,
        "published": None
        if published is None
        else {
            "box": {"AP": published.box_ap},
            "mask": None if published.mask_ap is None else {"AP": published.mask_ap},
            "images_per_s": published.images_per_s,
            "source": published.source,
        },
        "metrics": {} if result is None else dict(result.metrics),
        "difference": {kind: None if result is None else result.difference(row, kind) for kind in KINDS},
        "speed": None if result is None or result.speed is None else asdict(result.speed),
        "images": 0 if result is None else result.images,
        "annotated": 0 if result is None else result.annotated,
        "weights": None if result is None else result.weights,
        "weights_sha256": None if result is None else result.weights_sha256,
        "run": None if result is None else result.run,
        "notes": [] if result is None else list(result.notes),
    }


def write_rows_csv(rows: Sequence[TableRow], results: Results) -> None:
    """Write a line for each row and kind."""
    columns = [("row", "VARCHAR"), ("preset", "VARCHAR"), ("kind", "VARCHAR")]
    columns += [(name, "DOUBLE") for name in (*METRICS, "published_AP", "difference")]
    columns += [(name, "DOUBLE") for name in ("images_per_s", "images_per_worker_s", "published_images_per_s")]
    columns += [("images", "BIGINT"), ("annotated", "BIGINT"), ("is_comparable", "BOOLEAN")]
    write_answer(QueryResult(columns, _csv_rows(rows, results)), "csv", None)


def _csv_rows(rows: Sequence[TableRow], results: Results) -> Iterator[list[object]]:
    for row in rows:
        result = results.get(row.name)
        shown = _row_dict(row, result, None)
        speed = None if result is None else result.speed
        for kind in KINDS:
            of_kind = shown["metrics"].get(kind, {})
            yield [
                row.name,
                row.preset,
                kind,
                *(of_kind.get(name) for name in METRICS),
                published_ap(row, kind),
                shown["difference"][kind],
                None if speed is None else speed.images_per_s,
                None if speed is None else speed.images_per_worker_s,
                None if row.published is None else row.published.images_per_s,
                shown["images"],
                shown["annotated"],
                shown["is_comparable"],
            ]
