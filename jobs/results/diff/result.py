"""Diff: what changed between two runs, as numbers, examples and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.results.diff.rules import DiffRules, Kind
from jobs.terminal.html_table import html_line, html_table
from pipeline.text import count_of

CHANGES = tuple(kind for kind in Kind if kind is not Kind.SAME)


@dataclass(frozen=True)
class RunSide:
    """One of the two runs.

    output: the folder or prefix. run: its name, or "current". created: UTC, ISO 8601. model: as in the tables' column.
    mode: "full" or "incremental". is_complete: whether every image has its row. images: images of its state.
    """

    output: str
    run: str
    created: str
    model: str
    mode: str
    is_complete: bool
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class CategoryChanges:
    """The instances of one category, in compared images; an instance whose class changed counts under A's category.

    in_a, in_b: instances that count, in each run. counts: by `Kind`. mean_iou: of the pairs of this category, None
    without any.
    """

    category: str
    in_a: int
    in_b: int
    counts: tuple[int, ...]
    mean_iou: float | None

    @property
    def total(self) -> int:
        """Pairs, and instances without a partner."""
        return sum(self.counts)

    @property
    def changed(self) -> int:
        """Those that are not the same."""
        return self.total - self.counts[Kind.SAME]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "category": self.category,
            "in_a": self.in_a,
            "in_b": self.in_b,
            **{kind.label: self.counts[kind] for kind in Kind},
            "changed_share": self.changed / self.total if self.total else 0.0,
            "mean_iou": self.mean_iou,
        }


@dataclass(frozen=True)
class OutcomeChange:
    """Images that had one status in A and have another in B; examples: uris of the first ones."""

    status_a: str
    status_b: str
    images: int
    examples: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "status_a": self.status_a,
            "status_b": self.status_b,
            "images": self.images,
            "examples": [*self.examples],
        }


@dataclass(frozen=True)
class InstanceChange:
    """One instance that changed; a side is None where the instance is not there. instance_*: its column `instance`."""

    kind: Kind
    instance_a: int | None
    instance_b: int | None
    category_a: str | None
    category_b: str | None
    score_a: float | None
    score_b: float | None
    iou: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"kind": self.kind.label}


@dataclass(frozen=True)
class ChangedImage:
    """An image with changed instances.

    run_a, run_b: the runs with its rows, which for an incremental run may be earlier ones. same: instances that are
    the same. weight: the sum of the scores of changed instances (of the higher score of a pair). changes: the
    highest scores first.
    """

    image_id: int
    uri_a: str
    uri_b: str
    run_a: str
    run_b: str
    same: int
    weight: float
    changes: tuple[InstanceChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; the id as text, because many readers of JSON round numbers beyond 2^53."""
        values = {name: getattr(self, name) for name in ("uri_a", "uri_b", "run_a", "run_b", "same", "weight")}
        return {"image_id": str(self.image_id), **values, "changes": [change.to_dict() for change in self.changes]}


@dataclass(frozen=True, repr=False)
class Diff:
    """What changed from run A to run B.

    images: how many images, by what became of them, see `ImageFate`. categories: by name. class_changes: (category in
    A, category in B, instances), the most frequent first. outcomes: images with another status, the most frequent
    first. lost: instances that counted in images that were ok in A and are not in B. identical: instances of the
        same mask, score and category. largest: the images that changed
    most, the heaviest first. examples: uris by fate. notes: sentences on what the numbers mean.
    """

    a: RunSide
    b: RunSide
    rules: DiffRules
    images: dict[str, int]
    categories: tuple[CategoryChanges, ...]
    class_changes: tuple[tuple[str, str, int], ...] = ()
    outcomes: tuple[OutcomeChange, ...] = ()
    lost: int = 0
    identical: int = 0
    largest: tuple[ChangedImage, ...] = ()
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Instances by the label of their `Kind`."""
        return {kind.label: sum(each.counts[kind] for each in self.categories) for kind in Kind}

    @property
    def total(self) -> int:
        """Instances that count: pairs, instances without a partner, and lost ones."""
        return sum(each.total for each in self.categories) + self.lost

    @property
    def changed(self) -> int:
        """Instances that are not the same, and lost ones."""
        return sum(each.changed for each in self.categories) + self.lost

    @property
    def changed_share(self) -> float:
        """The share of changed instances, which `--fail-over` limits; 0 where none counts."""
        return self.changed / self.total if self.total else 0.0

    def __repr__(self) -> str:
        """Return the two runs and the share of changed instances."""
        changed = f"{self.changed:,} of {count_of(self.total, 'instance')} changed ({self.changed_share:.1%})"
        return f"<Diff of {self.a.run} and {self.b.run}: {changed}>"

    def _repr_html_(self) -> str:
        """Return the changes by category as a table, for notebooks."""
        heading = ["category", "in A", "in B", *(kind.label.replace("_", " ") for kind in Kind)]
        rows = [[each.category, each.in_a, each.in_b, *each.counts] for each in self.categories]
        return "".join([html_line(repr(self).strip("<>")), html_table(heading, rows), *map(html_line, self.notes)])

    def with_notes(self, notes: Sequence[str]) -> "Diff":
        """Return it with these notes."""
        return replace(self, notes=tuple(notes))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        rules = {name: getattr(self.rules, name) for name in ("min_score", "match_iou", "same_iou", "score_change")}
        return {
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "rules": rules | {"changed_content_compared": self.rules.is_changed_content_compared},
            "images": dict(self.images),
            "instances": {
                "total": self.total,
                "changed": self.changed,
                **self.counts,
                "lost": self.lost,
                "identical": self.identical,
            },
            "changed_share": self.changed_share,
            "categories": [each.to_dict() for each in self.categories],
            "class_changes": [{"from": one, "to": other, "instances": n} for one, other, n in self.class_changes],
            "outcomes": [each.to_dict() for each in self.outcomes],
            "largest": [each.to_dict() for each in self.largest],
            "examples": {fate: [*uris] for fate, uris in self.examples.items()},
            "notes": [*self.notes],
        }
