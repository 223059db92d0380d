"""Goldens of MMDetection's inference, and the differences of this implementation from them.

A golden is what MMDetection 3.3.0 computed for one model and one image with the deterministic weights; see
data/goldens/README.md for the arrays. `measure` runs this project's network on the same image, from the encoded file,
and gives one Row per quantity. tests/htc_model/network/test_parity.py asserts the rows, benchmarks/parity.py prints
them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

from htc_model.config import load_preset
from htc_model.masks.encode import encode_detections
from htc_model.masks.rle import decode_rle
from htc_model.network.box_ops import boxes_to_rois
from htc_model.network.detector import HTC, build_model
from htc_model.network.roi_align import pool_map, pool_pyramid, roi_levels
from htc_model.network.roi_heads import BOX_POOL, MASK_POOL
from htc_model.network.semantic_head import SEMANTIC_STRIDE
from htc_model.preprocess import build_batch
from htc_model.structures import ImageBatch, RawDetections
from htc_model.weights.untrained import untrained_state
from pipeline.inputs.decode import decode_image
from tests.support.goldens.decisions import (
    BOX_MARGIN_PX,
    Boxes,
    Candidates,
    FilterSettings,
    Side,
    are_same,
    collect_candidates,
    explain_both,
    far_pixels,
    pairwise_iou,
)
from tests.support.paths import DATA

PRESET_OF_GOLDEN: Mapping[str, str] = {
    "htc_r50": "htc_r50_fpn",
    "htc_nosem_r50": "htc_without_semantic_r50_fpn",
    "htc_r101": "htc_r101_fpn",
    "htc_x101_32x4d": "htc_x101_32x4d_fpn",
    "htc_x101_64x4d": "htc_x101_64x4d_fpn",
    "htc_x101_64x4d_dcn": "htc_x101_64x4d_fpn_dcn",
    "htc_r50_dcn": "htc_r50_fpn_dcn",
    "cascade_mask_r50": "cascade_mask_rcnn_r50_fpn",
    "cascade_mask_r101": "cascade_mask_rcnn_r101_fpn",
    "cascade_mask_x101_64x4d": "cascade_mask_rcnn_x101_64x4d_fpn",
    "cascade_r50": "cascade_rcnn_r50_fpn",
    "mask_rcnn_r50": "mask_rcnn_r50_fpn",
    "mask_rcnn_r101": "mask_rcnn_r101_fpn",
    "mask_rcnn_x101_64x4d": "mask_rcnn_x101_64x4d_fpn",
    "mask_rcnn_r50_pafpn": "mask_rcnn_r50_pafpn",
    "mask_rcnn_r50_mdconv": "mask_rcnn_r50_fpn_dcnv2",
    "mask_rcnn_r50_gn_all": "mask_rcnn_r50_fpn_gn",
    "htc_r50_mdconv": "htc_r50_fpn_dcnv2",
    "htc_r50_ga": "htc_r50_fpn_ga",
    "scnet_r50": "scnet_r50_fpn",
    "detectors_htc_r50": "detectors_htc_r50_fpn",
}

# Environments in which oneDNN and ATen use the code paths of other processors, as far as this one supports them.
CODE_PATHS: Mapping[str, Mapping[str, str]] = {
    "this processor": {},
    "sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
    "avx": {"ONEDNN_MAX_CPU_ISA": "AVX", "ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512_core": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "without oneDNN": {"HTC_WITHOUT_ONEDNN": "1"},
}

Golden = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the parity table; it passes if `worst` is within `tolerance`."""

    quantity: str
    worst: float
    tolerance: float
    unit: str
    is_lower_better: bool = True

    @property
    def is_ok(self) -> bool:
        return self.worst <= self.tolerance if self.is_lower_better else self.worst >= self.tolerance


def load_golden(path: Path) -> Golden:
    """Read one npz; `meta` and the RLE lists are parsed."""
    with np.load(path) as archive:
        golden: Golden = {key: archive[key] for key in archive.files}
    golden["meta"] = json.loads(str(golden["meta"]))
    for key in ("det_rle", "det_rle_avg3"):
        if key in golden:
            golden[key] = [{"size": r["size"], "counts": r["counts"].encode()} for r in json.loads(str(golden[key]))]
    return golden


def build_golden_model(golden_model: str) -> HTC:
    """Build the preset of a golden with the deterministic weights, ready for inference."""
    with torch.device("meta"):
        model = build_model(load_preset(PRESET_OF_GOLDEN.get(golden_model, golden_model)))
    model.load_state_dict(untrained_state(model.state_dict()), assign=True)
    return model.eval()


def golden_batch(golden: Golden, model: HTC, images: Path = DATA / "images") -> ImageBatch:
    """Build the network's input from the golden's encoded image."""
    return build_batch([decode_image((images / golden["meta"]["image"]).read_bytes())], model.config)


def is_input_exact(golden: Golden, batch: ImageBatch) -> bool:
    """Return whether the input is bit-identical to the published pipeline's (a CMYK image may differ)."""
    digest = hashlib.sha256(np.ascontiguousarray(batch.pixels.numpy()).tobytes()).hexdigest()
    return bool(digest == golden["meta"]["input_sha256"])


# In standard deviations of the tensor. Tensors that do not depend on the semantic branch or on a head's layers are
# within 1e-4 in every network (6.4e-5 at worst, on all code paths of benchmarks/processors.py). Measured for the
# others: 9.1e-5 and 1.9e-4, mask logits 1.3e-4 and 3.6e-4.
EARLY_TENSORS = ("C", "P", "rpn_", "fixed_roifeat", "fixed_refined")
EARLY_TOLERANCE = 1e-4
LATE_TOLERANCE = {"r50": 2e-4, "deep": 4e-4}
MASK_TOLERANCE = {"r50": 3e-4, "deep": 8e-4}
# Shares of detections and of proposals that one side lacks; proposals are not explained one by one.
MISSING_TOLERANCE = 0.1
PROPOSALS_TOLERANCE = 0.02
# SCNet's mask head, twelve convolutions without a norm, multiplies rounding: 8 pixels of 60 masks on this machine, and
# its own masks differ as much from themselves when features get noise of 1e-5 standard deviations.
SCNET_FAR_PIXELS = 100


@torch.inference_mode()
def measure(golden: Golden, model: HTC, batch: ImageBatch) -> Iterator[Row]:
    """Compare all quantities of the golden.

    Tensors must be close. Only few detections may be on one side only, and only where a decision is so close that the
    processor's rounding changes it (see `decisions`).
    """
    kind = "r50" if model.config.backbone.depth == 50 else "deep"
    score_tolerance = 1e-3 if kind == "r50" else 2e-3
    head = model.roi_head

    # In the memory order that HTC.features chooses on a CPU.
    features = model.backbone(batch.pixels.contiguous(memory_format=torch.channels_last))
    pyramid = model.neck(features)
    tensors = _numbered("C", features, 2) | _numbered("P", pyramid, 2)
    if "fixed_boxes" not in golden:
        yield from _tensor_rows(golden, tensors, kind)
        (raw,) = model.infer_from(pyramid, batch)
        yield from measure_detections(golden, model, batch, raw)
        return
    logits, deltas = model.rpn_head(pyramid)
    tensors |= _numbered("rpn_cls", logits) | _numbered("rpn_reg", deltas)
    semantic_feat = None
    if head.semantic_head is not None:
        fused = head.semantic_head.fuse(pyramid)
        semantic_feat = head.semantic_head.embed(fused)
        tensors |= {"sem_pred": head.semantic_head.classify(fused), "sem_feat": semantic_feat}
    tensors |= _on_fixed_rois(golden, model, pyramid, semantic_feat, batch)
    yield from _tensor_rows(golden, tensors, kind)
    rois = _fixed_rois(golden)
    yield Row("fixed_level", float((roi_levels(rois).numpy() != golden["fixed_level"]).sum()), 0, "RoIs")

    ((boxes, scores),) = model.rpn_head.select_proposals(logits, deltas, batch.image_sizes)
    unmatched = _unmatched_proposals(golden, boxes, scores, score_tolerance)
    yield Row("proposals unmatched", unmatched, PROPOSALS_TOLERANCE, "share")

    def collect() -> tuple[Candidates, Candidates]:
        return collect_candidates(model, pyramid, batch, (torch.from_numpy(golden["prop_boxes"]), boxes))

    yield from compare_detections(golden, model.infer(batch)[0], batch.image_sizes[0], _filters(model), collect)


def _tensor_rows(golden: Golden, tensors: Mapping[str, Tensor], kind: str) -> Iterator[Row]:
    for name, tensor in tensors.items():
        if (difference := _difference(golden, name, tensor)) is not None:
            late = MASK_TOLERANCE if name.startswith("fixed_mask") else LATE_TOLERANCE
            yield Row(name, difference, EARLY_TOLERANCE if name.startswith(EARLY_TENSORS) else late[kind], "std")


def _filters(model: HTC) -> FilterSettings:
    score_tolerance = 1e-3 if model.config.backbone.depth == 50 else 2e-3
    return FilterSettings.of(load_preset(model.config.name), score_tolerance)


@torch.inference_mode()
def measure_detections(golden: Golden, model: HTC, batch: ImageBatch, raw: RawDetections) -> Iterator[Row]:
    """Compare only the golden's detections, with those that another implementation than `model` found."""

    def collect() -> tuple[Candidates, Candidates]:
        pyramid = model.features(batch.pixels)
        return collect_candidates(
            model, pyramid, batch, (torch.from_numpy(golden["prop_boxes"]), model.propose(pyramid, batch)[0])
        )

    explain = collect if "prop_boxes" in golden else None
    allowed = SCNET_FAR_PIXELS if model.config.roi_head == "scnet" else 0
    yield from compare_detections(
        golden, raw, batch.image_sizes[0], _filters(model), explain, far_pixels_allowed=allowed
    )


def compare_detections(
    golden: Golden,
    raw: RawDetections,
    image_size: tuple[int, int],
    filter_settings: FilterSettings,
    collect: Callable[[], tuple[Candidates, Candidates]] | None,
    *,
    far_pixels_allowed: int = 0,
) -> Iterator[Row]:
    """Match final detections one to one, explain those without a partner, and compare the pairs.

    Args:
        image_size: (height, width) in network pixels.
        filter_settings: the network's thresholds.
        collect: finds the candidates of each side's detection filter; called only if a detection is missing. None for
            goldens without proposals: then missing detections are counted, not explained.
    """
    height, width = image_size
    scale = np.array([width / raw.original_size[1], height / raw.original_size[0]] * 2)
    theirs = Boxes(golden["det_boxes"] * scale, golden["det_scores"].astype(np.float64), golden["det_labels"])
    ours = Boxes(raw.boxes_xyxy.double().numpy() * scale, raw.scores.double().numpy(), raw.labels.numpy())
    is_same = are_same(theirs, ours, filter_settings.score_margin)
    pairs = _pair_up(np.where(is_same, pairwise_iou(theirs.boxes, ours.boxes), 0))
    missing = len(theirs) - len(pairs), len(ours) - len(pairs)
    unexplained = 0
    if collect is not None and any(missing):
        sides = zip((theirs, ours), collect(), strict=True)
        first, second = (Side(detections, candidates) for detections, candidates in sides)
        reasons = explain_both((first, second), pairs, filter_settings)
        unexplained = sum(missing) - sum(map(len, reasons))
    yield Row("detections missing", max(missing) / max(len(theirs), len(ours), 1), MISSING_TOLERANCE, "share")
    if collect is not None:
        yield Row("missing at no decision", unexplained, 0, "detections")
    if not pairs:
        return
    mine, golden_places = [j for _, j in pairs], [i for i, _ in pairs]
    yield Row(
        "score",
        float(np.abs(theirs.scores[golden_places] - ours.scores[mine]).max()),
        filter_settings.score_margin,
        "abs",
    )
    yield Row("box", float(np.abs(theirs.boxes[golden_places] - ours.boxes[mine]).max()), BOX_MARGIN_PX, "px")
    rles = golden.get("det_rle_avg3", golden.get("det_rle"))
    if raw.mask_probs is not None and rles is not None:
        yield from _compare_masks(raw, rles, [(i, j) for i, j in pairs if i < len(rles)], far_pixels_allowed)


def _compare_masks(
    raw: RawDetections, rles: Sequence[Any], pairs: Sequence[tuple[int, int]], far_pixels_allowed: int
) -> Iterator[Row]:
    """Compare the masks of matched detections (golden, ours), pixel by pixel where they differ."""
    masks, probs = encode_detections(raw).masks, raw.mask_probs
    if masks is None or probs is None:
        return
    ious = [_mask_iou(masks[j], rles[i]) for i, j in pairs]
    yield Row("mask IoU, mean", float(np.mean(ious)), 0.998, "IoU", is_lower_better=False)
    far = sum(
        far_pixels(probs[j], raw.boxes_xyxy[j], decode_rle(masks[j]).astype(bool) != decode_rle(rles[i]).astype(bool))
        for (i, j), iou in zip(pairs, ious, strict=True)
        if iou < 1
    )
    yield Row("mask pixels far from the threshold", far, far_pixels_allowed, "pixels")


def _on_fixed_rois(
    golden: Golden, model: HTC, pyramid: list[Tensor], semantic_feat: Tensor | None, batch: ImageBatch
) -> dict[str, Tensor]:
    head, rois = model.roi_head, _fixed_rois(golden)
    sizes = torch.tensor(batch.image_sizes)
    found = {
        "fixed_roifeat7": pool_pyramid(pyramid, rois, BOX_POOL),
        "fixed_roifeat14": pool_pyramid(pyramid, rois, MASK_POOL),
    }
    if semantic_feat is not None:
        found["fixed_semroi14"] = pool_map(semantic_feat, rois, SEMANTIC_STRIDE, MASK_POOL)
    for stage in range(model.config.num_stages):
        logits, deltas = head.box_forward(stage, pyramid, semantic_feat, rois)
        found |= {f"fixed_cls{stage}": logits, f"fixed_reg{stage}": deltas}
        found[f"fixed_refined{stage}"] = head.refine(stage, rois, deltas, sizes).squeeze(1)
    if model.config.has_masks:
        mask_feats = head.mask_forward(head.mask_features(pyramid, semantic_feat, rois))
        labels = torch.from_numpy(golden["fixed_mask_labels"])
        pick = golden["fixed_mask_pick"]
        for stage, (mask_head, mask_feat) in enumerate(zip(head.mask_heads, mask_feats, strict=True)):
            found[f"fixed_mask{stage}"] = mask_head.predict(mask_feat)
            found[f"fixed_mask{stage}.pick"] = mask_head.predict_class(mask_feat, labels)[pick]
    return found


def _numbered(name: str, tensors: Sequence[Tensor], first: int = 0) -> dict[str, Tensor]:
    return {f"{name}{index}": tensor for index, tensor in enumerate(tensors, first)}


def _fixed_rois(golden: Golden) -> Tensor:
    return boxes_to_rois([torch.from_numpy(golden["fixed_boxes"])])


def _difference(golden: Golden, name: str, tensor: Tensor) -> float | None:
    """Return the largest difference in the golden's standard deviations; None if the golden lacks the tensor."""
    if name + ".val" in golden:
        if tuple(tensor.shape) != tuple(golden[name + ".shape"]):
            return float("inf")
        values = tensor.flatten()[torch.from_numpy(golden[name + ".idx"].astype(np.int64))].double().numpy()
        return float(np.abs(values - golden[name + ".val"]).max() / golden[name + ".stat"][1])
    if name not in golden:
        return None
    wanted = golden[name].astype(np.float64)
    return float(np.abs(tensor.double().numpy() - wanted).max() / wanted.std())


def _unmatched_proposals(golden: Golden, boxes: Tensor, scores: Tensor, score_tolerance: float) -> float:
    """Return the share of golden proposals without a proposal within 0.1 px and the score's tolerance."""
    distance = torch.cdist(torch.from_numpy(golden["prop_boxes"]), boxes, p=float("inf"))
    is_near = distance < 0.1
    is_near &= (torch.from_numpy(golden["prop_scores"])[:, None] - scores[None]).abs() < score_tolerance
    return 1.0 - float(is_near.any(dim=1).float().mean())


def _pair_up(similarity: np.ndarray) -> list[tuple[int, int]]:
    """Pair each row with its most similar unused column of positive similarity."""
    pairs: list[tuple[int, int]] = []
    free = np.ones(similarity.shape[1], bool)
    for row, values in enumerate(similarity):
        if len(values) and (values * free).max() > 0:
            column = int((values * free).argmax())
            free[column] = False
            pairs.append((row, column))
    return pairs


def _mask_iou(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    if not pycocotools.mask.area(ours) and not pycocotools.mask.area(theirs):
        return 1.0
    return float(pycocotools.mask.iou([ours], [theirs], [0])[0, 0])
