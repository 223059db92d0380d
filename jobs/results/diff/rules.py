"""What counts as a change: the kinds, and the limits between them."""

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from pipeline.errors import SpecError

# The lowest limit of COCO's AP (cocodataset.org/#detection-eval): below it a detection is not of the same object.
MATCH_IOU = 0.5
# The highest of those limits is 0.95; two precisions of one model differ by less than this (docs/numerics.md).
SAME_IOU = 0.9
SCORE_CHANGE = 0.1
MIN_SCORE = 0.5


class Kind(IntEnum):
    """What became of an instance; the number is its column in arrays of counts.

    The first that applies, for a pair: CLASS_CHANGED (another category), MOVED (mask IoU below `same_iou`),
    SCORE_CHANGED (by more than `score_change`), SAME. Without a partner: VANISHED (in run A only), APPEARED.
    """

    SAME = 0
    MOVED = 1
    SCORE_CHANGED = 2
    CLASS_CHANGED = 3
    APPEARED = 4
    VANISHED = 5

    @property
    def label(self) -> str:
        """The name in tables and JSON."""
        return self.name.lower()


class ImageFate(StrEnum):
    """What became of an image; the first that applies.

    PENDING: one run is not complete and has no row of it yet. ADDED, REMOVED: only in B, only in A. CARRIED_OVER: the
    row is the same one, because an incremental run had nothing to do. CONTENT_CHANGED: another version.
    OUTCOME_CHANGED: another status. NOT_OK: the same status, which is not ok. SIZE_CHANGED: the same version read with
    other sides. COMPARED: ok in both, of the same content; only the instances of these are compared.
    """

    COMPARED = "compared"
    CARRIED_OVER = "carried_over"
    ADDED = "added"
    REMOVED = "removed"
    PENDING = "pending"
    OUTCOME_CHANGED = "outcome_changed"
    CONTENT_CHANGED = "content_changed"
    SIZE_CHANGED = "size_changed"
    NOT_OK = "not_ok"


FATES = tuple(ImageFate)


@dataclass(frozen=True)
class DiffRules:
    """The limits.

    min_score: an instance counts when it scores at least this in one of the runs. match_iou: two masks with at least
    this IoU may be of one object. same_iou: with less than this a pair counts as moved. score_change: a score may
    differ by up to this. is_changed_content_compared: compare images whose content has changed between the runs, too.
    """

    min_score: float = MIN_SCORE
    match_iou: float = MATCH_IOU
    same_iou: float = SAME_IOU
    score_change: float = SCORE_CHANGE
    is_changed_content_compared: bool = False

    @property
    def least_score(self) -> float:
        """`min_score` as the tables hold scores, in single precision: a score written as 0.9 is at least 0.9."""
        return struct.unpack("f", struct.pack("f", self.min_score))[0]  # type: ignore[no-any-return]

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            SpecError: one is no number in [0, 1], or `match_iou` is 0 or above `same_iou`.
        """
        for name in ("min_score", "match_iou", "same_iou", "score_change"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SpecError(f"{name} is {value:g}; give a number from 0 to 1.")
        if not 0 < self.match_iou <= self.same_iou:
            raise SpecError(
                f"--match-iou is {self.match_iou:g} and --same-iou {self.same_iou:g}; the first must be above 0 and at "
                "most the second."
            )
