"""`python -m pipeline.models.fresh_process`: makes a model in a new process, for `pipeline.models.conformance`.

Reads what to do as JSON from stdin, and writes the detections of one image as JSON to the last line of stdout.
"""

import json
import sys

import numpy as np
import torch


def main() -> None:
    """Make the model and take one image through it; an error ends the process with its sentence on stderr."""
    from pipeline.errors import HtcError, ModelError
    from pipeline.job_spec.model import ModelSection
    from pipeline.models.conformance import find_alone
    from pipeline.models.factory import make_model
    from pipeline.models.foreign_code import exits_as

    asked = json.load(sys.stdin)
    image = np.frombuffer(bytes.fromhex(asked["pixels"]), np.uint8).reshape(asked["shape"])
    try:
        model = make_model(ModelSection.model_validate(asked["section"]), folders=asked["folders"])
        model.to(torch.device(asked["device"]))
        # The process that asked would see success where the model calls sys.exit(0).
        with exits_as(lambda phrase: ModelError(f"it {phrase}")):
            found = find_alone(model, [image], torch.device(asked["device"]))[0]
    except HtcError as error:
        sys.exit(str(error))
    values = {
        "boxes": found.boxes_xyxy.tolist(),
        "scores": found.scores.tolist(),
        "labels": found.labels.tolist(),
        "masks": None
        if found.masks is None
        else [{"size": each["size"], "counts": each["counts"].decode("ascii")} for each in found.masks],
    }
    sys.stdout.write(f"\n{json.dumps(values)}\n")


if __name__ == "__main__":
    main()
