"""How good each mask head of a trained cell is by itself, and where the heads' inputs come from.

    python benchmarks/table1_masks.py OUTPUT [--device cuda]

Masks are predicted in the boxes of the held-out objects, so that neither boxes nor scores play a part: the mean overlap
(IoU) of the predicted 28x28 mask with the object's, by mask head, and of all heads' mean, which inference takes. For
the semantic branch and the mask information flow, the root mean square of what they add to a RoI's features is given
relative to the pyramid's own, at the start of the training and at its end.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from table1_report import MAIN_SYSTEMS, SWITCHES_ALONE  # noqa: E402
from table1_scores import images_of_class  # noqa: E402
from table1_small import load_model, read_heldout  # noqa: E402

from htc_model.network.box_ops import boxes_to_rois  # noqa: E402
from htc_model.network.detector import HTC  # noqa: E402
from htc_model.preprocess import resized_size  # noqa: E402
from htc_model.training.build import build_model_config, build_training_model  # noqa: E402
from htc_model.training.roi_features import mask_features  # noqa: E402
from htc_model.training.run import EvaluationSet  # noqa: E402
from htc_model.training.samples import build_training_batch, load_training_image, resize_image  # noqa: E402
from htc_model.training.spec import TrainingSpec  # noqa: E402
from htc_model.training.targets import build_mask_targets  # noqa: E402
from htc_model.weights.load import load_weights  # noqa: E402


@dataclass(frozen=True)
class MaskQuality:
    """overlaps: mean IoU by head, the last of all heads' mean. added: by part, relative to the pyramid's features."""

    overlaps: list[float]
    added: dict[str, float]


def measure(model: HTC, heldout: EvaluationSet) -> MaskQuality:
    """Predict the masks of all held-out objects in their own boxes."""
    sums: dict[int, list[float]] = defaultdict(list)
    added: dict[str, list[float]] = defaultdict(list)
    scored = {name: set(images_of_class(name, heldout.annotations)) for name in heldout.annotations.classes}
    device = next(model.parameters()).device
    for number, annotations in enumerate(heldout.annotations.images):
        image = load_training_image(annotations, heldout.load_image)
        image = resize_image(image, resized_size(*image.size, model.config.resize))
        is_scored = [number in scored[model.config.classes[label]] for label in image.labels]
        if not any(is_scored):
            continue
        batch, truths = build_training_batch([image], model.config)
        truth = truths[0].to(device)
        keep = torch.tensor(is_scored, device=device)
        boxes, labels = truth.boxes_xyxy[keep], truth.labels[keep]
        with torch.inference_mode():
            pyramid = model.features(batch.pixels.to(device))
            semantic = model.roi_head.semantic_forward(pyramid)
            rois = boxes_to_rois([boxes])
            plain = mask_features(model.roi_head, pyramid, None, rois)
            features = mask_features(model.roi_head, pyramid, semantic, rois)
            mask_feats = model.roi_head.mask_forward(features)
            probs = [
                head.predict_class(each, labels).sigmoid()
                for head, each in zip(model.roi_head.mask_heads, mask_feats, strict=True)
            ]
        if truth.masks is None:
            raise ValueError("the model has no mask heads")
        targets = build_mask_targets(truth.masks, keep.nonzero().squeeze(1), boxes, canvas_size=image.size)
        for head, prob in enumerate([*probs, torch.stack(probs).mean(dim=0)]):
            sums[head] += _overlap(prob > 0.5, targets).tolist()
        if semantic is not None:
            added["semantic branch"].append(_size(features - plain) / _size(plain))
        for stage, (head, before) in enumerate(zip(model.roi_head.mask_heads[1:], mask_feats, strict=False), start=2):
            if head.conv_res is not None:
                with torch.inference_mode():
                    added[f"mask flow into head {stage}"].append(_size(head.conv_res(before)) / _size(features))
    return MaskQuality([mean(each) for each in sums.values()], {part: mean(each) for part, each in added.items()})


def measure_start(spec: TrainingSpec, heldout: EvaluationSet, device: str) -> MaskQuality:
    """Measure a cell's network as its training begins."""
    annotations = heldout.annotations
    config = build_model_config(spec.model, annotations.classes, annotations.category_ids, has_stuff=spec.has_stuff)
    model, _ = build_training_model(spec, config, load_weights)
    return measure(model.eval().to(device), heldout)


def _overlap(predicted: Tensor, target: Tensor) -> Tensor:
    both = (predicted & target).flatten(1).sum(dim=1)
    either = (predicted | target).flatten(1).sum(dim=1)
    return both / either.clamp(min=1)


def _size(values: Tensor) -> float:
    return float(values.float().square().mean().sqrt())


def describe(measured: Mapping[str, Sequence[MaskQuality]], starts: Mapping[str, MaskQuality]) -> str:
    """Format both tables; measured and starts by system, measured with a value per seed."""
    most = max(len(each[0].overlaps) for each in measured.values()) - 1
    heads = [f"head {number}" for number in range(1, most + 1)]
    lines = [f"| system | seeds | {' | '.join(heads)} | mean of the heads |", "|---|---|" + "---|" * (most + 1)]
    for system, qualities in measured.items():
        means = [f"{100 * mean(values):.1f}" for values in zip(*(each.overlaps for each in qualities), strict=True)]
        cells = [*means[:-1], *[""] * (most - len(means) + 1), means[-1]]
        lines.append(f"| {system} | {len(qualities)} | {' | '.join(cells)} |")
    lines += ["", "| system | what is added to a RoI's features | at the start | at the end |", "|---|---|---|---|"]
    for system, start in starts.items():
        for part, value in start.added.items():
            end = mean(each.added[part] for each in measured[system])
            lines.append(f"| {system} | {part} | {value:.1f} | {end:.1f} |")
    return "\n".join(lines) + "\n"


def _finished(output: Path) -> Iterator[dict[str, Any]]:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("cells/*/result.json")]
    order = {system: number for number, system in enumerate((*MAIN_SYSTEMS, *SWITCHES_ALONE))}
    return iter(sorted(results, key=lambda result: (order[result["system"]], result["seed"])))


def main(given: Sequence[str] | None = None) -> int:
    """Measure every finished cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="of table1_small.py")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args(given)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    measured: dict[str, list[MaskQuality]] = defaultdict(list)
    starts: dict[str, MaskQuality] = {}
    for result in _finished(arguments.output):
        spec = TrainingSpec.model_validate(result["settings"])
        heldout = read_heldout(spec, arguments.output / "heldout.json")
        system = result["system"]
        if system not in starts:
            starts[system] = measure_start(spec, heldout, arguments.device)
        weights = Path(spec.output) / "weights.safetensors"
        measured[system].append(measure(load_model(weights, arguments.device), heldout))
    if not measured:
        print(f"No cell is finished in {arguments.output}; run table1_small.py first.", file=sys.stderr)
        return 2
    print(describe(measured, starts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
