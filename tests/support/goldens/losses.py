"""Goldens of MMDetection's training step, and the differences of this implementation from them.

A golden is one training step of MMDetection 3.3.0 on deterministic weights; see data/losses/README.md. `run_golden`
repeats the step and `measure_step` gives one StepRow per quantity, with tolerances from MMDetection's own spread
over threads, kernels and float64. tests/htc_model/training/test_step_parity.py asserts the rows,
benchmarks/loss_parity.py prints them, also for goldens that are not in this repository.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htc_model.config import ResizeConfig
from htc_model.masks.rle import decode_rle
from htc_model.network.box_ops import boxes_to_rois
from htc_model.network.detector import HTC, build_model
from htc_model.structures import ImageBatch, Rle
from htc_model.training.detector_losses import StepTrace, compute_losses
from htc_model.training.freezing import RESNET_FROZEN_STAGES, freeze_backbone, set_training_mode
from htc_model.training.targets import RoiSample, Truth
from htc_model.training.train_config import train_config_for
from htc_model.weights.untrained import untrained_state
from tests.support.builders.training_data import sample_all
from tests.support.paths import DATA

LOSS_GOLDENS = DATA / "losses"
PRESET_OF_LOSS_GOLDEN: Mapping[str, str] = {
    "htc_r50": "htc_r50_fpn",
    "htc_nosem_r50": "htc_without_semantic_r50_fpn",
    "cascade_mask_r50": "cascade_mask_rcnn_r50_fpn",
    "mask_rcnn_r50": "mask_rcnn_r50_fpn",
}
# The goldens keep this many proposals per image (the published configs keep 1000 or 2000).
GOLDEN_PROPOSALS = 200
# How many of the first target rows and masks a golden stores.
STORED_TARGETS = 32

Golden = dict[str, Any]


@dataclass(frozen=True)
class StepRow:
    """One quantity: `worst` is the largest difference; it passes if it is at most `tolerance`."""

    quantity: str
    worst: float
    tolerance: float
    unit: str

    @property
    def is_ok(self) -> bool:
        """Whether the difference is a number and within the tolerance."""
        return bool(np.isfinite(self.worst)) and self.worst <= self.tolerance


@dataclass(frozen=True)
class GoldenStep:
    """A golden's step, repeated by this implementation, with gradients."""

    model: HTC
    batch: ImageBatch
    trace: StepTrace


def load_loss_golden(path: Path) -> Golden:
    """Read a golden, and the arrays that several goldens of the same photos share from the file beside it."""
    golden: Golden = {}
    with np.load(path) as archive:
        golden.update({name: archive[name] for name in archive.files})
    golden["meta"] = json.loads(str(golden["meta"]))
    photo = path.with_name(f"photo_{'_'.join(golden['meta']['photos'])}.npz")
    if "img0" not in golden:
        with np.load(photo) as archive:
            golden.update({name: archive[name] for name in archive.files})
    return golden


def run_golden(golden: Golden) -> GoldenStep:
    """Repeat a golden's step from its resized pixels, boxes, masks and semantic maps, with the backward pass."""
    meta = golden["meta"]
    model = build_model(PRESET_OF_LOSS_GOLDEN[meta["model"]])
    model.load_state_dict(untrained_state(model.state_dict()))
    freeze_backbone(model, RESNET_FROZEN_STAGES)
    set_training_mode(model, has_frozen_batch_norm=True)
    count = len(meta["photos"])
    batch = _golden_batch(golden, model.config.resize)
    truths = [_golden_truth(golden, index, has_semantic=model.config.semantic) for index in range(count)]
    proposals = None
    if meta["variant"] == "fixed":
        given = torch.from_numpy(golden["props"])
        proposals = [given[given[:, 0] == index, 1:] for index in range(count)]
    train_config = sample_all(train_config_for(model.config), GOLDEN_PROPOSALS)
    trace = compute_losses(model, batch, truths, train_config, proposals=proposals)
    trace.total.backward()
    return GoldenStep(model, batch, trace)


def _golden_batch(golden: Golden, resize: ResizeConfig) -> ImageBatch:
    images = [golden[f"img{index}"] for index in range(len(golden["meta"]["photos"]))]
    sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    multiple = resize.pad_multiple
    height, width = (-(-max(size[axis] for size in sizes) // multiple) * multiple for axis in (0, 1))
    mean = torch.tensor(resize.mean_rgb).view(3, 1, 1)
    std = torch.tensor(resize.std_rgb).view(3, 1, 1)
    pixels = torch.zeros(len(images), 3, height, width)
    for slot, image, size in zip(pixels, images, sizes, strict=True):
        rgb = torch.from_numpy(image.copy()).flip(2).permute(2, 0, 1).float()
        slot[:, : size[0], : size[1]] = (rgb - mean) / std
    return ImageBatch(pixels, sizes, sizes)


def _golden_truth(golden: Golden, index: int, *, has_semantic: bool) -> Truth:
    encoded = json.loads(str(golden[f"gt_rle{index}"]))
    masks = [decode_rle(Rle(size=rle["size"], counts=rle["counts"].encode())) for rle in encoded]
    return Truth(
        boxes_xyxy=torch.from_numpy(golden[f"gt_boxes{index}"]),
        labels=torch.from_numpy(golden[f"gt_labels{index}"]),
        masks=torch.from_numpy(np.stack(masks)).to(torch.uint8),
        semantic_map=torch.from_numpy(golden[f"sem{index}"]) if has_semantic else None,
    )


def measure_step(golden: Golden, step: GoldenStep) -> Iterator[StepRow]:
    """Compare all quantities of the golden that the step computes."""
    digest = hashlib.sha256(step.batch.pixels.numpy().tobytes()).hexdigest()
    yield StepRow("input", float(digest != golden["meta"]["input_sha256"]), 0, "sha256 differs")
    yield from _loss_rows(golden, step.trace)
    yield from _anchor_rows(golden, step.trace)
    for index, stage in enumerate(step.trace.stages):
        prefix = f"s{index}"
        yield from _sample_rows(golden, f"{prefix}.box", stage.boxes.samples, step.trace)
        yield _distance_row(
            f"{prefix}.box.targets", stage.boxes.targets[:STORED_TARGETS], golden[f"{prefix}.box.targets32"], 1e-3
        )
        if stage.refined is not None and f"{prefix}.refined" in golden:
            refined = boxes_to_rois(stage.refined)
            yield _distance_row(f"{prefix}.refined", refined, golden[f"{prefix}.refined"], 0.05, "px")
        if stage.masks is not None:
            yield from _sample_rows(golden, f"{prefix}.mask", stage.masks.samples, step.trace)
            yield _mask_target_row(golden, prefix, stage.masks.targets)
    yield from _gradient_rows(golden, step.model)


def _loss_rows(golden: Golden, trace: StepTrace) -> Iterator[StepRow]:
    names = golden["loss_names"].tolist()
    yield StepRow("names of the losses", float(names != list(trace.losses)), 0, "differ")
    for name, value in zip(names, golden["loss_values"].tolist(), strict=True):
        found = trace.losses[name].item()
        if "acc" in name:
            stage = int(name[1]) if name.startswith("s") else 0
            one_roi = 100 / len(trace.stages[stage].boxes.rois)
            yield StepRow(name, abs(found - value), one_roi + 1e-4, "percent")
        else:
            is_dense = "rpn" in name or "semantic" in name
            yield StepRow(name, _relative(found, value), 5e-6 if is_dense else 3e-4, "relative")
    yield StepRow("total", _relative(trace.total.item(), float(golden["total"])), 5e-5, "relative")


def _anchor_rows(golden: Golden, trace: StepTrace) -> Iterator[StepRow]:
    assigned = torch.stack(trace.rpn.assigned).clamp(max=0)
    # Ours: an object's index, -1 background, -2 unused. The golden's: 1, 0, -1.
    yield _equality_row("rpn.assign", assigned + 1, golden["rpn.assign"])
    targets = trace.rpn.targets
    yield _equality_row("rpn.pos_gt", torch.cat([t.gt_indices for t in targets]), golden["rpn.pos_gt"])
    factor = torch.tensor(sum(image.sample.average_factor for image in targets))
    yield _equality_row("rpn.avg_factor", factor, golden["rpn.avg_factor"])
    yield _distance_row("rpn.targets", torch.cat([t.deltas for t in targets]), golden["rpn.pos_targets"], 1e-3)
    yield _distance_row("proposals", boxes_to_rois(trace.proposals), golden["props"], 0.02, "px")
    if "sem8" in golden and trace.semantic_targets is not None:
        yield _equality_row("semantic targets", trace.semantic_targets, golden["sem8"])


def _sample_rows(golden: Golden, prefix: str, samples: list[RoiSample], trace: StepTrace) -> Iterator[StepRow]:
    kind = prefix.split(".")[1]
    found = {
        "pos_inds": torch.cat([sample.sample.positives for sample in samples]),
        "neg_inds": torch.cat([sample.sample.negatives for sample in samples]),
        "pos_gt": torch.cat([sample.gt_indices for sample in samples]),
        "pos_is_gt": torch.cat([sample.is_gt[: sample.positive_count] for sample in samples]),
        "labels": torch.cat([sample.labels[: None if kind == "box" else sample.positive_count] for sample in samples]),
    }
    for name, tensor in found.items():
        yield _equality_row(f"{prefix}.{name}", tensor, golden[f"{prefix}.{name}"])
    boxes = [sample.rois_xyxy[: None if kind == "box" else sample.positive_count] for sample in samples]
    yield _distance_row(f"{prefix}.rois", boxes_to_rois(boxes), golden[f"{prefix}.rois"], 0.05, "px")


def _mask_target_row(golden: Golden, prefix: str, targets: Tensor) -> StepRow:
    stored = torch.from_numpy(golden[f"{prefix}.mask.targets32"]) > 0
    counts = torch.from_numpy(golden[f"{prefix}.mask.targets_count"])
    if len(targets) != len(counts):
        return StepRow(f"{prefix}.mask.targets", float("inf"), 2, "pixels")
    pixels = int((targets[:STORED_TARGETS] != stored).sum())
    beyond = int((targets[STORED_TARGETS:].flatten(1).sum(1) - counts[STORED_TARGETS:]).abs().sum())
    return StepRow(f"{prefix}.mask.targets", pixels + beyond, 2, "pixels")


def _gradient_rows(golden: Golden, model: HTC) -> Iterator[StepRow]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    names = golden["grad_names"].tolist()
    is_same = set(names) == set(parameters) and frozen == set(golden["meta"]["frozen"])
    yield StepRow("names of the gradients", float(not is_same), 0, "differ")
    norms = [_norm(parameters[name]) for name in names]
    differences = [_relative(*pair) for pair in zip(norms, golden["grad_norms"].tolist(), strict=True)]
    yield StepRow("gradient norms", max(differences), 1e-2, "relative")
    selected = zip(golden["gsel_names"].tolist(), golden["gsel_idx"], golden["gsel_val"], strict=True)
    worst = 0.0
    for name, index, values in selected:
        gradient = parameters[name].grad
        assert gradient is not None, name
        found = gradient.flatten()[torch.from_numpy(index)].numpy()
        worst = max(worst, float(np.abs(found - values).max() / abs(values[0])))
    yield StepRow("selected gradients", worst, 2e-2, "of the largest")


def _norm(parameter: Tensor) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.double().norm())


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / max(abs(expected), 1e-12)


def _equality_row(quantity: str, found: Tensor, expected: Any) -> StepRow:
    wanted = torch.from_numpy(np.array(expected))
    if found.shape != wanted.shape:
        return StepRow(quantity, float("inf"), 0, "differ")
    return StepRow(quantity, int((found.long() != wanted.long()).sum()), 0, "differ")


def _distance_row(quantity: str, found: Tensor, expected: Any, tolerance: float, unit: str = "") -> StepRow:
    wanted = torch.from_numpy(np.array(expected))
    if found.shape != wanted.shape:
        return StepRow(quantity, float("inf"), tolerance, unit)
    worst = float((found.double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
    return StepRow(quantity, worst, tolerance, unit)
