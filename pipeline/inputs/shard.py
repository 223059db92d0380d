"""A shard: a fixed slice of a run's images, the unit of work, retry and commit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.inputs.image_ref import ImageRef


@dataclass(frozen=True)
class Shard:
    """The unit of work, retry and output: a fixed list of images.

    signed: the addresses of those images and containers that are read by signed URLs; kept in memory only.
    """

    index: int
    images: tuple[ImageRef, ...]
    signed: Mapping[str, str] = field(default_factory=dict, repr=False)
