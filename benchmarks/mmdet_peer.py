"""Runs a network of MMDetection for `model_cpu.py --peer mmdet`, in an interpreter that has MMDetection 3.3.

    PYTHON benchmarks/mmdet_peer.py CASE.pt

CASE.pt holds the preset, the weights by MMDetection's key names, the pixels and the sizes. Then, for every line on
standard input, one image is detected and a JSON line with the CPU seconds, the detections and the versions is printed;
the input's end ends the program. Measured is `predict`: from normalised pixels to boxes, scores and pasted bit masks.
"""

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
import torchvision

# In mmdet/.mim/configs of the package.
CONFIGS = {
    "htc_r50_fpn": "htc/htc_r50_fpn_1x_coco.py",
    "htc_without_semantic_r50_fpn": "htc/htc-without-semantic_r50_fpn_1x_coco.py",
    "mask_rcnn_r50_fpn": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "cascade_mask_rcnn_r50_fpn": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
}


def install_operators() -> str:
    """Provide mmcv's compiled operators; torchvision's, which give the same bits, where mmcv was built without."""
    try:
        import mmcv._ext  # noqa: F401
    except ImportError:
        sys.modules["mmcv._ext"] = TorchvisionOperators("mmcv._ext")
        return "torchvision's operators"
    return "mmcv's operators"


class TorchvisionOperators(types.ModuleType):
    """The two operators of mmcv that these networks use, and a name for each of the others."""

    @staticmethod
    def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
        """Return the kept indices, best first."""
        if offset:
            raise NotImplementedError("nms with an offset")
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        features: torch.Tensor, rois: torch.Tensor, output: torch.Tensor, *_unused: torch.Tensor, **settings: Any
    ) -> None:
        """Pool into `output`."""
        size = (settings["aligned_height"], settings["aligned_width"])
        output.copy_(
            torchvision.ops.roi_align(
                features,
                rois,
                size,
                settings["spatial_scale"],
                settings["sampling_ratio"],
                settings["aligned"],
            )
        )

    def __getattr__(self, name: str) -> Any:
        """Return a stand-in: mmcv checks at import that each operator has a name."""
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_arguments: Any, **_settings: Any) -> None:
            raise NotImplementedError(f"mmcv's operator {name} is not installed")

        return missing


def build(preset: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Build a preset's network from the published configuration, which MMDetection's package brings, for inference."""
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine import Config

    register_all_modules(init_default_scope=True)
    settings = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / CONFIGS[preset]).model
    settings.backbone.init_cfg = None  # the weights come from the case, not from the network
    model = MODELS.build(settings)
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def main() -> None:
    """Answer every line on standard input."""
    operators = install_operators()
    torch.set_num_threads(1)
    case = torch.load(sys.argv[1], weights_only=True)
    import mmdet
    from mmdet.structures import DetDataSample

    model = build(case["preset"], case["state"])
    (height, width), (original_height, original_width) = case["image_size"], case["original_size"]
    sample = DetDataSample(
        metainfo={
            "img_shape": (height, width),
            "ori_shape": (original_height, original_width),
            "scale_factor": (width / original_width, height / original_height),
            "pad_shape": tuple(case["pixels"].shape[-2:]),
            "batch_input_shape": tuple(case["pixels"].shape[-2:]),
        }
    )
    print(json.dumps({"mmdet": mmdet.__version__, "torch": torch.__version__, "operators": operators}), flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        (result,) = model.predict(case["pixels"], [sample])
        seconds = time.process_time() - started
        found = result.pred_instances
        answer = {"boxes": found.bboxes.tolist(), "scores": found.scores.tolist(), "labels": found.labels.tolist()}
        print(json.dumps({"cpu_s": seconds} | answer), flush=True)


if __name__ == "__main__":
    main()
