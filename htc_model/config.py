"""Model config: the frozen `ModelConfig` that describes a network, and the named presets.

The numbers are those of MMDetection's published configs (configs/_base_/models/{mask-rcnn_r50_fpn,
cascade-mask-rcnn_r50_fpn}.py and configs/htc/*.py), which the published checkpoints were trained with.
Nothing here imports torch, so that commands can read presets quickly.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from htc_model.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES

BackboneKind = Literal["resnet", "efficientnet_lite0", "detectors_resnet", "senet154", "seresnext101_32x4d"]
Norm = Literal["batch", "group", "group_published"]
Neck = Literal["fpn", "pafpn", "recursive"]
Rpn = Literal["anchors", "guided"]
BoxHeadKind = Literal["two_linear", "four_conv_one_linear"]
RoiHeadKind = Literal["cascade", "scnet", "panet"]
Suppression = Literal["hard", "soft_linear", "soft_gaussian"]
Stds = tuple[float, float, float, float]

# Cascade R-CNN (arXiv:1712.00726, sec. 4): each stage's regression targets are normalised more finely.
CASCADE_STDS: tuple[Stds, ...] = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
)


class ModelConfigError(ValueError):
    """A preset's name or a model's configuration is wrong; the message is one sentence for the user."""


@dataclass(frozen=True)
class ResizeConfig:
    """How an image becomes the network's input: sizes in pixels, mean and std per RGB channel in grey levels.

    has_bgr: the network reads blue, green, red; mean_rgb and std_rgb stay in the order of their names.
    Source: `Resize(scale=(1333, 800), keep_ratio=True)`, ImageNet's mean and std, padding to FPN's stride 32.
    """

    long_side: int = 1333
    short_side: int = 800
    pad_multiple: int = 32
    mean_rgb: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std_rgb: tuple[float, float, float] = (58.395, 57.12, 57.375)
    has_bgr: bool = False


@dataclass(frozen=True)
class BackboneConfig:
    """The backbone, which computes C2..C5.

    kind: "resnet" is ResNet and ResNeXt; "detectors_resnet" has switchable atrous and weight-standardised convolutions
        (DetectoRS, arXiv:2006.02334); the squeeze-and-excitation networks are timm's (arXiv:1709.01507).
    depth: ResNet depth, 50 or 101. groups, base_width: ResNeXt's cardinality and width (64 x 4d is 64 and 4).
    has_deformable_stages: 3x3 convolutions are deformable (arXiv:1703.06211), from stage `first_deformable` on.
    is_modulated: deformable convolutions are of version 2, each tap with a weight (DCNv2, arXiv:1811.11168).
    first_deformable: 2 to 5 for C2 to C5.
    norm: "group" replaces the batch norms by group norms (arXiv:1803.08494) for training from scratch;
        "group_published" is the same network with the names of the published weights (gn1 for bn1).
    """

    kind: BackboneKind = "resnet"
    depth: int = 50
    groups: int = 1
    base_width: int = 64
    has_deformable_stages: bool = False
    norm: Norm = "batch"
    is_modulated: bool = False
    first_deformable: int = 3


@dataclass(frozen=True)
class ViewConfig:
    """One view of an image at test time.

    long_side, short_side: bounds of the resized image, as in `ResizeConfig`. is_mirrored: left and right are exchanged.
    """

    long_side: int
    short_side: int
    is_mirrored: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """One network: its parts, HTC's three switches, and its test-time thresholds.

    The switches can be used separately (arXiv:1901.07518, sec. 3):

    interleaved: mask head t is trained on the boxes that box head t has just refined, not on that head's inputs. At
        inference all mask heads use the final boxes in either case (as the published code does for both systems), so
        that with the same weights the detections are the same: it is a property of training.
    mask_info_flow: mask head t receives the features of mask head t-1 through a 1x1 convolution (`conv_res`).
    semantic: a semantic branch whose embedding is pooled for each RoI and added to box and mask features.

    The parts that differ between systems of the family:

    neck: "fpn", "pafpn" with PANet's bottom-up path (arXiv:1803.01534), or DetectoRS' "recursive" pyramid.
    rpn: anchors, or guided anchoring (arXiv:1901.03278).
    box_head: two linear layers, or four convolutions and one linear layer.
    roi_head: "cascade" for Mask R-CNN, Cascade R-CNN and HTC; "scnet" (arXiv:2012.10150): one mask head on the last
        stage's boxes, a global context, feature relay; "panet": adaptive feature pooling and fully-connected fusion.
    has_group_norm: neck, box heads and mask heads have group norms.
    suppression: of detections: "hard" is NMS; the soft ones (arXiv:1704.04503) lower the scores of overlapping boxes:
        linear above `nms_iou`, gaussian by `soft_nms_sigma`; scores below `soft_nms_min_score` are dropped.

    semantic_names: of the semantic branch's classes, one for each channel; none where they follow from the others, see
        `htc_model.semantic_classes`.
    views: of test-time augmentation, a mirrored view behind its plain one; none is the plain image alone.

    Other fields: box_stds one row per cascade stage; score_threshold in [0, 1], detections score above it;
    nms_iou, rpn_nms_iou suppress above it; channel counts are those of the layers they name.
    """

    name: str
    classes: tuple[str, ...] = COCO_CLASSES
    category_ids: tuple[int, ...] = COCO_CATEGORY_IDS
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    interleaved: bool = False
    mask_info_flow: bool = False
    semantic: bool = False
    has_masks: bool = True
    has_class_specific_boxes: bool = False
    box_stds: tuple[Stds, ...] = CASCADE_STDS
    fpn_channels: int = 256
    box_fc_channels: int = 1024
    mask_channels: int = 256
    semantic_classes: int = 183
    rpn_candidates_per_level: int = 1000
    rpn_proposals: int = 1000
    rpn_nms_iou: float = 0.7
    score_threshold: float = 0.001
    nms_iou: float = 0.5
    max_detections: int = 100
    neck: Neck = "fpn"
    rpn: Rpn = "anchors"
    box_head: BoxHeadKind = "two_linear"
    roi_head: RoiHeadKind = "cascade"
    has_group_norm: bool = False
    suppression: Suppression = "hard"
    soft_nms_sigma: float = 0.5
    soft_nms_min_score: float = 0.001
    views: tuple[ViewConfig, ...] = ()
    semantic_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.category_ids):
            raise ModelConfigError(
                f"{self.name} has {len(self.classes)} classes but {len(self.category_ids)} category ids."
            )
        if not self.classes or not self.box_stds:
            raise ModelConfigError(f"{self.name} needs at least one class and one stage.")
        if self.semantic_names and len(self.semantic_names) != self.semantic_classes:
            raise ModelConfigError(
                f"{self.name} has {self.semantic_classes} semantic classes but {len(self.semantic_names)} names."
            )
        self._check_parts()
        if self.has_class_specific_boxes and self.num_stages > 1:
            # A stage's refined box is the next stage's RoI, so there must be one box, not one per class.
            raise ModelConfigError(f"{self.name} has a box per class, which only a single stage may have.")
        if self.max_detections < 1 or self.rpn_proposals < 1:
            raise ModelConfigError(f"{self.name} must be allowed at least one proposal and one detection.")

    def _check_parts(self) -> None:
        for what, value, choices in (
            ("backbone", self.backbone.kind, BackboneKind),
            ("norm", self.backbone.norm, Norm),
            ("neck", self.neck, Neck),
            ("rpn", self.rpn, Rpn),
            ("box_head", self.box_head, BoxHeadKind),
            ("roi_head", self.roi_head, RoiHeadKind),
            ("suppression", self.suppression, Suppression),
        ):
            if value not in get_args(choices):
                raise ModelConfigError(
                    f"{self.name} has the unknown {what} {value!r}; known: {', '.join(get_args(choices))}."
                )
        if self.roi_head == "scnet" and not (
            self.semantic and self.has_masks and self.mask_channels == self.fpn_channels
        ):
            raise ModelConfigError(
                f"{self.name}: scnet needs masks, the semantic branch, and mask_channels equal to fpn_channels."
            )
        if self.backbone.norm == "group_published" and self.backbone.kind != "resnet":
            raise ModelConfigError(f"{self.name}: only ResNets have published group norms; set backbone.norm to group.")
        if self.roi_head == "panet" and (self.num_stages > 1 or self.semantic or self.box_head != "two_linear"):
            raise ModelConfigError(f"{self.name}: panet needs one stage, two linear layers, and no semantic branch.")
        if (self.neck == "recursive") != (self.backbone.kind == "detectors_resnet"):
            raise ModelConfigError(
                f"{self.name} needs both or neither of the recursive neck and the detectors_resnet backbone."
            )

    @property
    def num_classes(self) -> int:
        """How many object classes there are, background not counted."""
        return len(self.classes)

    @property
    def num_stages(self) -> int:
        """How many cascade stages there are; 1 is plain Mask R-CNN."""
        return len(self.box_stds)


_R101 = BackboneConfig(depth=101)
_X101_32X4D = BackboneConfig(depth=101, groups=32, base_width=4)
_X101_64X4D = BackboneConfig(depth=101, groups=64, base_width=4)

_R50_DCNV2 = BackboneConfig(has_deformable_stages=True, is_modulated=True)
# Detectron's preprocessing, of the ImageNet weights that the networks with group norm began with.
_CAFFE_RESIZE = ResizeConfig(mean_rgb=(123.675, 116.28, 103.53), std_rgb=(1.0, 1.0, 1.0), has_bgr=True)

_MASK_RCNN = ModelConfig(
    name="mask_rcnn_r50_fpn",
    has_class_specific_boxes=True,
    box_stds=CASCADE_STDS[:1],
    score_threshold=0.05,
)
_CASCADE_MASK = ModelConfig(name="cascade_mask_rcnn_r50_fpn", score_threshold=0.05)
_HTC_WITHOUT_SEMANTIC = ModelConfig(name="htc_without_semantic_r50_fpn", interleaved=True, mask_info_flow=True)
_HTC = replace(_HTC_WITHOUT_SEMANTIC, name="htc_r50_fpn", semantic=True)

# What is known of the entry that won COCO 2018 (arXiv:1901.07518, extensions): docs/models/networks.md has the rest.
_CHALLENGE = replace(
    _HTC,
    name="htc_challenge",
    backbone=BackboneConfig(kind="senet154", has_deformable_stages=True, first_deformable=5),
    rpn="guided",
    rpn_proposals=300,
)
_SCNET = replace(_CASCADE_MASK, name="scnet_r50_fpn", semantic=True, roi_head="scnet", score_threshold=0.001)

_DETECTORS = replace(
    _HTC, name="detectors_htc_r50_fpn", backbone=BackboneConfig(kind="detectors_resnet"), neck="recursive"
)

# This project's own preset for demos and tests on a CPU: seconds per image and fewer than 12 M parameters. Mean and
# std are those EfficientNet-Lite was trained with (tensorflow/tpu, efficientnet/lite); the other numbers are choices.
_LITE = replace(
    _HTC,
    name="htc_lite0_fpn",
    backbone=BackboneConfig(kind="efficientnet_lite0"),
    resize=ResizeConfig(long_side=640, short_side=384, mean_rgb=(127.0, 127.0, 127.0), std_rgb=(128.0, 128.0, 128.0)),
    fpn_channels=64,
    box_fc_channels=256,
    mask_channels=64,
    rpn_candidates_per_level=500,
    rpn_proposals=300,
)

PRESETS: Mapping[str, ModelConfig] = {
    config.name: config
    for config in (
        _MASK_RCNN,
        replace(_MASK_RCNN, name="mask_rcnn_r101_fpn", backbone=_R101),
        replace(_MASK_RCNN, name="mask_rcnn_x101_64x4d_fpn", backbone=_X101_64X4D),
        _CASCADE_MASK,
        replace(_CASCADE_MASK, name="cascade_mask_rcnn_r101_fpn", backbone=_R101),
        replace(_CASCADE_MASK, name="cascade_mask_rcnn_x101_64x4d_fpn", backbone=_X101_64X4D),
        replace(_CASCADE_MASK, name="cascade_rcnn_r50_fpn", has_masks=False),
        _HTC_WITHOUT_SEMANTIC,
        _HTC,
        replace(_HTC, name="htc_r101_fpn", backbone=_R101),
        replace(_HTC, name="htc_x101_32x4d_fpn", backbone=_X101_32X4D),
        replace(_HTC, name="htc_x101_64x4d_fpn", backbone=_X101_64X4D),
        replace(_HTC, name="htc_x101_64x4d_fpn_dcn", backbone=replace(_X101_64X4D, has_deformable_stages=True)),
        replace(_HTC, name="htc_r50_fpn_dcn", backbone=BackboneConfig(has_deformable_stages=True)),
        _LITE,
        replace(_MASK_RCNN, name="mask_rcnn_r50_pafpn", neck="pafpn"),
        replace(_MASK_RCNN, name="panet_r50_fpn", neck="pafpn", roi_head="panet"),
        replace(_MASK_RCNN, name="mask_rcnn_r50_fpn_dcnv2", backbone=_R50_DCNV2),
        replace(_HTC, name="htc_r50_fpn_dcnv2", backbone=_R50_DCNV2),
        replace(
            _MASK_RCNN,
            name="mask_rcnn_r50_fpn_gn",
            backbone=BackboneConfig(norm="group_published"),
            resize=_CAFFE_RESIZE,
            box_head="four_conv_one_linear",
            has_group_norm=True,
        ),
        replace(_HTC, name="htc_r50_fpn_ga", rpn="guided", rpn_proposals=300),
        _SCNET,
        replace(_SCNET, name="scnet_r101_fpn", backbone=_R101),
        replace(_SCNET, name="scnet_x101_64x4d_fpn", backbone=_X101_64X4D),
        _DETECTORS,
        replace(_HTC, name="htc_seresnext101_32x4d_fpn", backbone=BackboneConfig(kind="seresnext101_32x4d")),
        _CHALLENGE,
        replace(_DETECTORS, name="detectors_htc_r101_fpn", backbone=replace(_DETECTORS.backbone, depth=101)),
    )
}


def load_preset(name: str) -> ModelConfig:
    """Return the preset of that name.

    Raises:
        ModelConfigError: there is none; the message names the nearest one and lists all.
    """
    if name in PRESETS:
        return PRESETS[name]
    nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
    raise ModelConfigError(
        f"There is no preset {name!r}; did you mean {nearest!r}? The presets are: {', '.join(PRESETS)}."
    )


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Convert a config to plain JSON values (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def config_from_dict(d: Mapping[str, Any]) -> ModelConfig:
    """Convert the result of `config_to_dict` back; raises ModelConfigError for unknown or missing keys."""
    values = dict(d)
    values["backbone"] = _read_section(BackboneConfig, d.get("backbone", {}))
    values["resize"] = _read_section(ResizeConfig, d.get("resize", {}))
    values["views"] = tuple(_read_section(ViewConfig, view) for view in d.get("views", ()))
    config: ModelConfig = _read_section(ModelConfig, values)
    return config


_LATER_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "": {
        "neck": "fpn",
        "rpn": "anchors",
        "box_head": "two_linear",
        "roi_head": "cascade",
        "has_group_norm": False,
        "suppression": "hard",
        "soft_nms_sigma": 0.5,
        "soft_nms_min_score": 0.001,
        "views": [],
        "semantic_names": [],
    },
    "backbone": {"is_modulated": False, "first_deformable": 3},
    "resize": {"has_bgr": False},
}


def config_sha256(config: ModelConfig) -> str:
    """Return 64 hex digits that are equal if and only if two configs are equal."""
    plain = config_to_dict(config)
    # Fields that came later are left out at their defaults: the runs and weights from before keep their fingerprints.
    for section, defaults in _LATER_FIELDS.items():
        holder = plain[section] if section else plain
        for name, default in defaults.items():
            if holder[name] == default:
                del holder[name]
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_section(section: Any, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(section)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ModelConfigError(f"{section.__name__} has no key {unknown[0]!r}; known: {', '.join(sorted(known))}.")
    try:
        return section(**{key: _tuples(value) for key, value in values.items()})
    except TypeError as error:
        raise ModelConfigError(f"{section.__name__} cannot be built: {error}.") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
