"""Prints the network's differences from MMDetection's goldens: per model, image and quantity the worst, with tolerance.

    python benchmarks/parity.py [--goldens DIR ...] [--images DIR] [--only SUBSTRING] [--all] [--static] [--for-cpu]

Each image goes from its encoded file to the encoded detections. Tensors are grouped (backbone, pyramid, proposals,
heads), and the worst of each group is printed, unless --all is given. With --static the detections are those of
htc_model/inference: folded weights, fixed shapes. With --for-cpu the network is the one that workers run on a CPU
(`optimise_for_cpu`). The last line is JSON.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from htc_model.inference import FastModel  # noqa: E402
from htc_model.inference.cpu_network import optimise_for_cpu  # noqa: E402
from tests.support.goldens.network import (  # noqa: E402
    DATA,
    Row,
    build_golden_model,
    golden_batch,
    is_input_exact,
    load_golden,
    measure,
    measure_detections,
)

GROUPS = {
    r"C\d": "backbone C2-C5",
    r"P\d": "pyramid P2-P6",
    r"rpn_(cls|reg)\d": "RPN logits, deltas",
    r"sem_(pred|feat)": "semantic logits, feature",
    r"fixed_(roifeat|semroi)\d+": "RoI features",
    r"fixed_(cls|reg|refined)\d": "box logits, deltas, boxes",
    r"fixed_mask\d(\.pick)?": "mask logits",
}


def group_rows(rows: Iterable[Row]) -> list[Row]:
    """Keep the worst row of each group, named after the group."""
    worst: dict[str, Row] = {}
    for row in rows:
        name = next((name for pattern, name in GROUPS.items() if re.fullmatch(pattern, row.quantity)), row.quantity)
        if name not in worst or row.worst > worst[name].worst:
            worst[name] = Row(name, row.worst, row.tolerance, row.unit, row.is_lower_better)
    return list(worst.values())


def main() -> int:
    """Print the table; the exit code is 1 if a line is out of tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--goldens", type=Path, nargs="+", default=[DATA / "goldens", DATA / "goldens_more"])
    parser.add_argument("--images", type=Path, default=DATA / "images")
    parser.add_argument("--only", default="", help="take goldens whose file name contains this")
    parser.add_argument("--all", action="store_true", help="one line per tensor")
    parser.add_argument("--static", action="store_true", help="only detections, by folded weights and fixed shapes")
    parser.add_argument("--for-cpu", action="store_true", help="the network as workers run it on a CPU")
    arguments = parser.parse_args()
    # torch has no environment variable for this; benchmarks/processors.py sets HTC_WITHOUT_ONEDNN.
    torch.backends.mkldnn.enabled = "HTC_WITHOUT_ONEDNN" not in os.environ
    started = time.monotonic()
    lines = failed = 0
    not_exact = []
    model_name, model = "", None
    print("| model | image | quantity | worst | tolerance | unit | ok |\n|---|---|---|---|---|---|---|")
    for path in sorted((path for folder in arguments.goldens for path in folder.glob("*.npz")), key=lambda p: p.name):
        if arguments.only not in path.name:
            continue
        golden = load_golden(path)
        if golden["meta"]["model"] != model_name or model is None:
            model_name = golden["meta"]["model"]
            model = build_golden_model(model_name)
            if arguments.for_cpu:
                model = optimise_for_cpu(model)
        batch = golden_batch(golden, model, arguments.images)
        if not is_input_exact(golden, batch):
            not_exact.append(path.stem)
            print(f"| {model_name} | {golden['meta']['image']} | input bits differ | | | | - |")
            continue
        if arguments.static:
            (raw,) = FastModel(model, "cpu", is_static=True).infer(batch)
            rows = list(measure_detections(golden, model, batch, raw))
        else:
            rows = list(measure(golden, model, batch))
        for row in rows if arguments.all else group_rows(rows):
            lines, failed = lines + 1, failed + (not row.is_ok)
            relation = "<=" if row.is_lower_better else ">="
            print(
                f"| {model_name} | {golden['meta']['image']} | {row.quantity} | {row.worst:.3g} "
                f"| {relation} {row.tolerance:g} | {row.unit} | {'yes' if row.is_ok else 'NO'} |",
                flush=True,
            )
    result = {"benchmark": "parity", "compares": "htc_model with MMDetection 3.3.0's goldens", "lines": lines}
    result |= {"out_of_tolerance": failed, "input_not_exact": not_exact, "torch": torch.__version__}
    print(json.dumps(result | {"seconds": round(time.monotonic() - started)}))
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
