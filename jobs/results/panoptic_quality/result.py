"""What `htc evaluate --panoptic` found, as values and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.results.panoptic_quality.quality import Quality, SegmentCounts, mean_quality, quality_of
from jobs.results.panoptic_quality.truth import TruthCategory
from jobs.terminal.html_table import html_line, html_table
from pipeline.text import count_of


@dataclass(frozen=True)
class JudgedImage:
    """One image: its row's id, uri and status in the run, its name in the truth, and what is right and wrong there."""

    image_id: int
    uri: str
    file_name: str
    status: str
    counts: SegmentCounts

    @property
    def mistakes(self) -> int:
        """How many segments are wrong or missed."""
        return self.counts.wrong + self.counts.missed

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "image_id": str(self.image_id),
            "uri": self.uri,
            "file_name": self.file_name,
            "status": self.status,
            "right": self.counts.right,
            "wrong": self.counts.wrong,
            "missed": self.counts.missed,
        }


@dataclass(frozen=True, repr=False)
class PanopticEvaluation:
    """The judgement of a run's panoptic segments.

    categories, all_counts: those that are scored, and the counts of each. images: how many were scored. segments: how
    many segments of these categories the run has on them. worst: the images with most mistakes. missing: annotated
    images without a row in the run, not scored. notes: sentences on what the numbers mean. truth: where the truth is.
    """

    run: str
    truth: str
    categories: tuple[TruthCategory, ...]
    all_counts: tuple[SegmentCounts, ...]
    images: int
    segments: int
    worst: tuple[JudgedImage, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def qualities(self) -> Mapping[str, Quality]:
        """The means over all categories, over things and over stuff."""
        pairs = list(zip(self.categories, self.all_counts, strict=True))
        return {
            "all": mean_quality(counts for _, counts in pairs),
            "things": mean_quality(counts for category, counts in pairs if category.is_thing),
            "stuff": mean_quality(counts for category, counts in pairs if not category.is_thing),
        }

    def category_rows(self) -> list[dict[str, Any]]:
        """Return of each category its name, its kind, its numbers and its counts."""
        rows = []
        for category, counts in zip(self.categories, self.all_counts, strict=True):
            quality = quality_of(counts)
            rows.append(
                {
                    "name": category.name,
                    "is_thing": category.is_thing,
                    "PQ": quality.pq,
                    "SQ": quality.sq,
                    "RQ": quality.rq,
                    "right": counts.right,
                    "wrong": counts.wrong,
                    "missed": counts.missed,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; docs/evaluate.md lists the keys."""
        return {
            "run": self.run,
            "truth": self.truth,
            "images": self.images,
            "segments": self.segments,
            "panoptic": {name: quality.to_dict() for name, quality in self.qualities.items()},
            "categories": self.category_rows(),
            "worst": [image.to_dict() for image in self.worst],
            "missing": list(self.missing),
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        """Return the run and its panoptic quality."""
        numbers = ", ".join(f"{name} PQ {in_words(quality.pq)}" for name, quality in self.qualities.items())
        return f"<PanopticEvaluation of run {self.run}: {numbers} on {count_of(self.images, 'image')}>"

    def _repr_html_(self) -> str:
        """Return the means as a table, for notebooks."""
        rows = [[name, in_words(q.pq), in_words(q.sq), in_words(q.rq)] for name, q in self.qualities.items()]
        return "".join(
            [
                html_line(repr(self).strip("<>")),
                html_table(["", "PQ", "SQ", "RQ"], rows),
                *map(html_line, self.notes),
            ]
        )


def in_words(value: float) -> str:
    """Return a number in [0, 1]; "-" for -1, where there is nothing to judge."""
    return "-" if value < 0 else f"{value:.3f}"
