"""What `htc show` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.results.drawing.style import Style
from jobs.results.evaluation.run_images import MatchRule
from pipeline.job_spec.map_tables import MapTable

# Below this, a label would cover the image.
MIN_LONG_SIDE = 480


@dataclass(frozen=True)
class ShowRequest:
    """Which pictures, and how.

    folder: for the pictures; created if it is missing.
    uris: whole URIs of images or ends of them; without any, `sample` images from all over the run, 16 by default, or
        the first `limit`.
    categories: only instances of these, and images that have one.
    min_score: instances that score less are left out, 0.3 by default; if no instance reaches the default, or the
        weights are untrained, the five best of each image are drawn, with a message.
    statuses: images with these.
    run: None takes the newest.
    truth: COCO annotations, a path or URI; each image is drawn twice, truth beside detections, and only images that
        the file names. match: how they are found in the run.
    content: "images": a picture for each image; "crops": one for each instance; "panoptic": of each image its panoptic
        segments; "semantic": its semantic map.
    is_beside: whether the image itself is beside each picture.
    is_sheet: pages of twelve pictures instead.
    picture_format: png, jpeg or webp.
    is_overwriting: replace files that are not pictures of htc, too.
    """

    folder: Path
    uris: Sequence[str] = ()
    sample: int | None = None
    limit: int | None = None
    categories: Sequence[str] = ()
    min_score: float | None = None
    statuses: Sequence[str] = ("ok",)
    run: str | None = None
    truth: str | None = None
    match: MatchRule = MatchRule.file_name
    content: Literal["images", "crops", "panoptic", "semantic"] = "images"
    is_beside: bool = False
    is_sheet: bool = False
    picture_format: str = "png"
    is_overwriting: bool = False
    style: Style = field(default_factory=lambda: Style(min_long_side=MIN_LONG_SIDE))

    @property
    def map_table(self) -> MapTable | None:
        """The table whose maps are drawn; None where instances are."""
        return self.content if self.content in ("panoptic", "semantic") else None

    @property
    def sides(self) -> int:
        """How many pictures of an image stand side by side."""
        return 1 + self.is_beside + (self.truth is not None)

    @property
    def noun(self) -> str:
        """What a drawn row is called."""
        return {"panoptic": "segment", "semantic": "region"}.get(self.content, "instance")
