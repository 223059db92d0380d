"""Model zoo: addresses, hashes and average precision of the published checkpoints.

Numbers are from MMDetection's READMEs (configs/*/README.md of htc, mask_rcnn, cascade_rcnn, dcnv2, gn, scnet and
detectors): average precision in percent on COCO val2017. MMDetection puts the first eight hex
digits of a file's sha256 at the end of its name. Nothing here imports torch, so that commands can list it quickly.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT = "https://download.openmmlab.com/mmdetection/v2.0/"
_HTC_README = "open-mmlab/mmdetection, configs/htc/README.md"
_MASK_RCNN_README = "open-mmlab/mmdetection, configs/mask_rcnn/README.md"
_CASCADE_README = "open-mmlab/mmdetection, configs/cascade_rcnn/README.md"
_DCNV2_README = "open-mmlab/mmdetection, configs/dcnv2/README.md"
_GN_README = "open-mmlab/mmdetection, configs/gn/README.md"
_SCNET_README = "open-mmlab/mmdetection, configs/scnet/README.md"
_DETECTORS_README = "open-mmlab/mmdetection, configs/detectors/README.md"

# The model that is part of this package; docs/models/htc_lite0_fpn.md describes how it was trained.
BUNDLED_PRESET = "htc_lite0_fpn"


class UnknownWeightsError(ValueError):
    """There is no published checkpoint of that name; the message names the nearest and lists all."""


@dataclass(frozen=True)
class PublishedWeights:
    """One published checkpoint.

    preset: the network it fits. name: its name in commands.
    url, file_name: of the file. sha256_prefix: its first eight digits, from its name.
    box_ap, mask_ap: percent on COCO val2017; mask_ap is None for a network without masks. source: of these numbers.
    images_per_s: of the network on one V100, as that source has it; None where it says nothing.
    """

    preset: str
    name: str
    url: str
    file_name: str
    sha256_prefix: str
    box_ap: float
    mask_ap: float | None
    source: str
    note: str
    images_per_s: float | None = None


def _published(
    preset: str,
    schedule: str,
    path: str,
    *,
    box_ap: float,
    mask_ap: float | None,
    source: str,
    note: str,
    images_per_s: float | None = None,
) -> PublishedWeights:
    file_name = PurePosixPath(path).name
    return PublishedWeights(
        preset=preset,
        name=f"{preset}_{schedule}",
        url=_ROOT + path,
        file_name=file_name,
        sha256_prefix=sha256_prefix_of(file_name) or "",
        box_ap=box_ap,
        mask_ap=mask_ap,
        source=source,
        note=note if images_per_s is None else f"{note}; {images_per_s} images/s on one V100",
        images_per_s=images_per_s,
    )


def sha256_prefix_of(file_name: str) -> str | None:
    """Return the hash that MMDetection puts at the end of a file's name: 8 hex digits, or None."""
    stem, _, digits = PurePosixPath(file_name).stem.rpartition("-")
    is_hash = bool(stem) and len(digits) == 8 and set(digits) <= set("0123456789abcdef")
    return digits if is_hash else None


# The best checkpoint of a preset comes first: `weights: coco` means that one.
PUBLISHED: tuple[PublishedWeights, ...] = (
    _published(
        "htc_r50_fpn",
        "20e",
        "htc/htc_r50_fpn_20e_coco/htc_r50_fpn_20e_coco_20200319-fe28c577.pth",
        box_ap=43.3,
        mask_ap=38.3,
        source=_HTC_README,
        note="20 epochs",
    ),
    _published(
        "htc_r50_fpn",
        "1x",
        "htc/htc_r50_fpn_1x_coco/htc_r50_fpn_1x_coco_20200317-7332cf16.pth",
        box_ap=42.3,
        mask_ap=37.4,
        source=_HTC_README,
        note="12 epochs",
        images_per_s=5.8,
    ),
    _published(
        "htc_r101_fpn",
        "20e",
        "htc/htc_r101_fpn_20e_coco/htc_r101_fpn_20e_coco_20200317-9b41b48f.pth",
        box_ap=44.8,
        mask_ap=39.6,
        source=_HTC_README,
        note="20 epochs",
        images_per_s=5.5,
    ),
    _published(
        "htc_x101_32x4d_fpn",
        "20e",
        "htc/htc_x101_32x4d_fpn_16x1_20e_coco/htc_x101_32x4d_fpn_16x1_20e_coco_20200318-de97ae01.pth",
        box_ap=46.1,
        mask_ap=40.5,
        source=_HTC_README,
        note="20 epochs",
        images_per_s=5.0,
    ),
    _published(
        "htc_x101_64x4d_fpn",
        "20e",
        "htc/htc_x101_64x4d_fpn_16x1_20e_coco/htc_x101_64x4d_fpn_16x1_20e_coco_20200318-b181fd7a.pth",
        box_ap=47.0,
        mask_ap=41.4,
        source=_HTC_README,
        note="20 epochs",
        images_per_s=4.4,
    ),
    _published(
        "htc_x101_64x4d_fpn_dcn",
        "20e",
        "htc/htc_x101_64x4d_fpn_dconv_c3-c5_mstrain_400_1400_16x1_20e_coco/"
        "htc_x101_64x4d_fpn_dconv_c3-c5_mstrain_400_1400_16x1_20e_coco_20200312-946fd751.pth",
        box_ap=50.4,
        mask_ap=43.8,
        source=_HTC_README,
        note="20 epochs; trained at short sides of 400 to 1400 pixels",
    ),
    _published(
        "mask_rcnn_r50_fpn",
        "1x",
        "mask_rcnn/mask_rcnn_r50_fpn_1x_coco/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth",
        box_ap=38.2,
        mask_ap=34.7,
        source=_MASK_RCNN_README,
        note="12 epochs",
        images_per_s=16.1,
    ),
    _published(
        "mask_rcnn_r101_fpn",
        "1x",
        "mask_rcnn/mask_rcnn_r101_fpn_1x_coco/mask_rcnn_r101_fpn_1x_coco_20200204-1efe0ed5.pth",
        box_ap=40.0,
        mask_ap=36.1,
        source=_MASK_RCNN_README,
        note="12 epochs",
    ),
    _published(
        "mask_rcnn_x101_64x4d_fpn",
        "1x",
        "mask_rcnn/mask_rcnn_x101_64x4d_fpn_1x_coco/mask_rcnn_x101_64x4d_fpn_1x_coco_20200201-9352eb0d.pth",
        box_ap=42.8,
        mask_ap=38.4,
        source=_MASK_RCNN_README,
        note="12 epochs",
    ),
    _published(
        "cascade_mask_rcnn_r50_fpn",
        "1x",
        "cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco/cascade_mask_rcnn_r50_fpn_1x_coco_20200203-9d4dcb24.pth",
        box_ap=41.2,
        mask_ap=35.9,
        source=_CASCADE_README,
        note="12 epochs",
        images_per_s=11.2,
    ),
    _published(
        "cascade_mask_rcnn_r101_fpn",
        "1x",
        "cascade_rcnn/cascade_mask_rcnn_r101_fpn_1x_coco/cascade_mask_rcnn_r101_fpn_1x_coco_20200203-befdf6ee.pth",
        box_ap=42.9,
        mask_ap=37.3,
        source=_CASCADE_README,
        note="12 epochs",
    ),
    _published(
        "cascade_mask_rcnn_x101_64x4d_fpn",
        "1x",
        "cascade_rcnn/cascade_mask_rcnn_x101_64x4d_fpn_1x_coco/"
        "cascade_mask_rcnn_x101_64x4d_fpn_1x_coco_20200203-9a2db89d.pth",
        box_ap=45.3,
        mask_ap=39.2,
        source=_CASCADE_README,
        note="12 epochs",
    ),
    _published(
        "cascade_rcnn_r50_fpn",
        "1x",
        "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco/cascade_rcnn_r50_fpn_1x_coco_20200316-3dc56deb.pth",
        box_ap=40.3,
        mask_ap=None,
        source=_CASCADE_README,
        note="12 epochs; boxes only",
    ),
    _published(
        "mask_rcnn_r50_fpn_dcnv2",
        "1x",
        "dcn/mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco/mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco_20200203-ad97591f.pth",
        box_ap=41.5,
        mask_ap=37.1,
        source=_DCNV2_README,
        note="12 epochs",
        images_per_s=15.1,
    ),
    _published(
        "mask_rcnn_r50_fpn_gn",
        "2x",
        "gn/mask_rcnn_r50_fpn_gn-all_2x_coco/mask_rcnn_r50_fpn_gn-all_2x_coco_20200206-8eee02a6.pth",
        box_ap=40.2,
        mask_ap=36.4,
        source=_GN_README,
        note="24 epochs",
    ),
    _published(
        "scnet_r50_fpn",
        "20e",
        "scnet/scnet_r50_fpn_20e_coco/scnet_r50_fpn_20e_coco-a569f645.pth",
        box_ap=44.5,
        mask_ap=40.0,
        source=_SCNET_README,
        note="20 epochs",
    ),
    _published(
        "scnet_r50_fpn",
        "1x",
        "scnet/scnet_r50_fpn_1x_coco/scnet_r50_fpn_1x_coco-c3f09857.pth",
        box_ap=43.5,
        mask_ap=39.2,
        source=_SCNET_README,
        note="12 epochs",
    ),
    _published(
        "scnet_r101_fpn",
        "20e",
        "scnet/scnet_r101_fpn_20e_coco/scnet_r101_fpn_20e_coco-294e312c.pth",
        box_ap=45.8,
        mask_ap=40.9,
        source=_SCNET_README,
        note="20 epochs",
    ),
    _published(
        "scnet_x101_64x4d_fpn",
        "20e",
        "scnet/scnet_x101_64x4d_fpn_20e_coco/scnet_x101_64x4d_fpn_20e_coco-fb09dec9.pth",
        box_ap=47.5,
        mask_ap=42.3,
        source=_SCNET_README,
        note="20 epochs",
        images_per_s=4.9,
    ),
    _published(
        "detectors_htc_r50_fpn",
        "1x",
        "detectors/detectors_htc_r50_1x_coco/detectors_htc_r50_1x_coco-329b1453.pth",
        box_ap=49.1,
        mask_ap=42.6,
        source=_DETECTORS_README,
        note="12 epochs",
    ),
    _published(
        "detectors_htc_r101_fpn",
        "20e",
        "detectors/detectors_htc_r101_20e_coco/detectors_htc_r101_20e_coco_20210419_203638-348d533b.pth",
        box_ap=50.5,
        mask_ap=43.9,
        source=_DETECTORS_README,
        note="20 epochs",
    ),
)


def find(name: str) -> PublishedWeights:
    """Find a checkpoint by its name, its file's name, or its preset's name (then the first listed).

    Raises:
        UnknownWeightsError: there is none of that name.
    """
    for published in PUBLISHED:
        if name in {published.name, published.preset, published.file_name}:
            return published
    names = [published.name for published in PUBLISHED]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise UnknownWeightsError(
        f"There are no published weights {name!r}; did you mean {nearest!r}? There are: {', '.join(names)}."
    )


def find_by_sha256(sha256: str) -> PublishedWeights | None:
    """Find the checkpoint whose published hash is a prefix of `sha256` (64 hex digits)."""
    for published in PUBLISHED:
        if sha256.startswith(published.sha256_prefix):
            return published
    return None


def bundled_weights() -> Path:
    """Return the `.safetensors` file of the bundled small model, of `BUNDLED_PRESET`."""
    return Path(__file__).with_name("bundled") / f"{BUNDLED_PRESET}.safetensors"
