"""Shard: a fixed slice of a run's images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.inputs.image_ref import ImageRef


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and commit: a fixed list of images.

    images: a tuple, or the manifest's rows (`image_rows.ImageRows`), which are decoded on first use.
    signed: the signed URLs of those images and containers that need one; kept in memory only.
    """

    index: int
    images: Sequence[ImageRef]
    signed: Mapping[str, str] = field(default_factory=dict, repr=False)
