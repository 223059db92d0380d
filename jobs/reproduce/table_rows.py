"""The rows of the table: which checkpoints they are, and which of them a command asks for."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from htc_model.config import PRESETS
from htc_model.weights.model_zoo import PUBLISHED, PublishedWeights, UnknownWeightsError, find
from pipeline.errors import SpecError
from pipeline.storage.uris import is_local, local_path

# The systems and backbones of table 1 of arXiv:1901.07518, as far as they have a preset. MMDetection publishes its
# Cascade Mask R-CNN after 12 epochs, HTC with ResNet-50 after 12 and 20, larger HTC after 20.
TABLE1: tuple[str, ...] = (
    "mask_rcnn_r50_fpn_1x",
    "panet_r50_fpn",
    "cascade_mask_rcnn_r50_fpn_1x",
    "cascade_mask_rcnn_r101_fpn_1x",
    "cascade_mask_rcnn_x101_64x4d_fpn_1x",
    "htc_r50_fpn_1x",
    "htc_r50_fpn_20e",
    "htc_r101_fpn_20e",
    "htc_x101_64x4d_fpn_20e",
)


@dataclass(frozen=True)
class TableRow:
    """One row.

    name: of the checkpoint, or of the preset where none is published; also of the row's output. published: its
        published figures. weights: given instead of the published file, as `model.weights`; None fetches that.
    """

    name: str
    preset: str
    published: PublishedWeights | None
    weights: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to run the row with."""
        return self.weights is not None or self.published is not None


def choose_rows(names: Sequence[str], given: Sequence[str]) -> list[TableRow]:
    """Return the rows that a command asks for, in its order and each once.

    Args:
        names: of presets or published checkpoints, several in one text with commas; "all" stands for every published
            checkpoint; none stands for `TABLE1`.
        given: `NAME=WEIGHTS`; a row that `names` lacks comes last.

    Raises:
        SpecError: an unknown name, a row that was asked for and has no weights, a file that does not exist.
    """
    words = [word.strip() for name in names for word in name.split(",") if word.strip()]
    if names and not words:
        raise SpecError("--presets names nothing; name presets or published weights, as in `htc weights list`.")
    asked = [each.name for each in PUBLISHED] if words == ["all"] else words
    rows = {row.name: row for row in map(_row_of, asked or TABLE1)}
    for text in given:
        name, is_given, weights = text.partition("=")
        if not (is_given and name and weights):
            raise SpecError(f"--weights takes PRESET=FILE here, as in htc_r50_fpn=own.pth, and not {text!r}.")
        if weights == "coco":
            raise SpecError(f"--weights {text}: the published weights are fetched anyway; leave it out.")
        row = _row_of(name)
        _check_file(weights, text)
        rows[row.name] = replace(row, weights=weights)
    lacking = [row for row in rows.values() if words and not row.has_weights]
    if lacking:
        raise SpecError(without_weights(lacking[0]))
    return list(rows.values())


def without_weights(row: TableRow) -> str:
    """Say what to do about a row without weights."""
    return f"No weights of {row.preset} are published; run your own with --weights {row.preset}=FILE."


def _row_of(name: str) -> TableRow:
    try:
        published = find(name)
    except UnknownWeightsError:
        published = None
    if published is not None:
        return TableRow(published.name, published.preset, published)
    if name in PRESETS:
        return TableRow(name, name, None)
    known = [*dict.fromkeys([*(each.name for each in PUBLISHED), *PRESETS])]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise SpecError(f"There is no preset and no published weights {name!r}; did you mean {nearest!r}?")


def _check_file(weights: str, text: str) -> None:
    if weights in {"demo", "untrained"} or not is_local(weights):
        return
    path = Path(local_path(weights))
    if not path.is_file():
        raise SpecError(f"There is no weights file {path} (--weights {text}).")
