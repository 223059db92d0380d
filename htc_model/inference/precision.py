"""Which arithmetic the network uses: the precision gate, its records, and TensorFloat-32.

`auto` means bfloat16 where it is fast and known to give the same detections, else float32. It is known where
`precision_records.json` has a record of the same preset, weights and kind of device that passes the gate;
`benchmarks/precision_gate.py` makes records.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou

from htc_model.inference.plan import Precision

__all__ = [
    "GateRecord",
    "Matches",
    "PrecisionChoice",
    "choose_precision",
    "device_kind",
    "find_record",
    "forbid_tf32",
    "load_records",
    "match_detections",
]

RECORDS = "precision_records.json"

# The gate. Scores above 0.3 are those that users look at; IoU 0.95 is what the comparison with MMDetection's goldens
# calls the same box (tests/data/goldens/README.md), for which bfloat16's eight bits leave no margin in small boxes.
MATCHED_SCORE = 0.3
MATCHED_IOU = 0.95
LEAST_MATCHED = 0.99
MOST_AP_CHANGE = 0.1  # in percent points of COCO's mask AP
# The first cards with bfloat16 tensor cores (NVIDIA Ampere architecture whitepaper).
_BF16_CAPABILITY = (8, 0)

Requested = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Matches:
    """How many detections above `MATCHED_SCORE` of two runs are the same.

    reference, other: such detections of each. reference_matched, other_matched: those that the other run has at any
        score, with the same label and an IoU of boxes above `MATCHED_IOU`.
    """

    reference: int = 0
    reference_matched: int = 0
    other: int = 0
    other_matched: int = 0

    def __add__(self, more: "Matches") -> "Matches":
        return Matches(
            self.reference + more.reference,
            self.reference_matched + more.reference_matched,
            self.other + more.other,
            self.other_matched + more.other_matched,
        )

    @property
    def share(self) -> float:
        """The smaller of both sides' matched shares, 0 to 1; 0 where there is nothing to compare."""
        if not self.reference or not self.other:
            return 0.0
        return min(self.reference_matched / self.reference, self.other_matched / self.other)


@dataclass(frozen=True)
class GateRecord:
    """What bfloat16 does to one model on one kind of device, against float32 on the same device.

    preset: of the network. weights_sha256: of the weights file.
    device: see `device_kind`. torch: its version.
    photos: matches on the example photos, of `photo_count` photos.
    mask_ap_fp32, mask_ap_bf16: COCO's mask AP in percent on `ap_images` held-out photos.
    goldens: matches on deterministic weights, by golden.
    """

    preset: str
    weights_sha256: str
    device: str
    torch: str
    photo_count: int
    photos: Matches
    ap_images: int
    mask_ap_fp32: float
    mask_ap_bf16: float
    goldens: dict[str, Matches]

    @property
    def failures(self) -> list[str]:
        """What does not pass the gate, one phrase each; empty for a record that passes."""
        failures = [
            f"{matches.share:.1%} of detections matched on {name}, at least {LEAST_MATCHED:.0%} are needed"
            for name, matches in {"photos": self.photos, **self.goldens}.items()
            if matches.share < LEAST_MATCHED
        ]
        change = self.mask_ap_bf16 - self.mask_ap_fp32
        if not self.ap_images or not abs(change) <= MOST_AP_CHANGE:
            failures.append(f"mask AP changes by {change:+.2f} on {self.ap_images} held-out photos")
        if not self.goldens:
            failures.append("no goldens were compared")
        return failures

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PrecisionChoice:
    """The arithmetic of a model, and why.

    precision: "fp32" or "bf16". reason: one phrase, for the log and the run's record. TF32 is off in either case, see
        `forbid_tf32`.
    """

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.precision}, TF32 off; {self.reason}"


def choose_precision(
    requested: Requested,
    preset: str,
    weights_sha256: str,
    device: torch.device,
    records: Sequence[GateRecord] | None = None,
) -> PrecisionChoice:
    """Settle what a spec's `precision` means for one model on one device.

    Args:
        requested: "fp32" and "bf16" are taken as they are.
        preset, weights_sha256: of the model, as in `GateRecord`.
        device: where it will run.
        records: those to look in; by default the ones that come with the program.
    """
    if requested != "auto":
        return PrecisionChoice(requested, "as the spec says")
    if not has_bf16_cores(device):
        return PrecisionChoice("fp32", f"auto: {device_kind(device)} has no bfloat16 tensor cores")
    record = find_record(load_records() if records is None else records, preset, weights_sha256, device_kind(device))
    if record is None:
        return PrecisionChoice(
            "fp32", f"auto: no record of the precision gate for these weights on {device_kind(device)}"
        )
    if record.failures:
        return PrecisionChoice("fp32", f"auto: the precision gate refuses bf16: {record.failures[0]}")
    return PrecisionChoice("bf16", f"auto: passed the precision gate on {record.device}")


def has_bf16_cores(device: torch.device) -> bool:
    """Return whether the device multiplies matrices of bfloat16 faster than those of float32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY


def device_kind(device: torch.device) -> str:
    """Name the kinds of devices that round alike: "cpu", or a GPU's architecture such as "cuda sm_90"."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda sm_{major}{minor}"


def find_record(records: Sequence[GateRecord], preset: str, weights_sha256: str, device: str) -> GateRecord | None:
    """Return the last record of a model on a kind of device, None without one."""
    found = [
        record
        for record in records
        if (record.preset, record.weights_sha256, record.device) == (preset, weights_sha256, device)
    ]
    return found[-1] if found else None


@lru_cache(maxsize=1)
def load_records() -> tuple[GateRecord, ...]:
    """Read the records that come with the program."""
    text = files("htc_model.inference").joinpath(RECORDS).read_text(encoding="utf-8")
    return parse_records(text)


def parse_records(text: str) -> tuple[GateRecord, ...]:
    """Read records from JSON: a list of what `GateRecord.to_dict` gives."""
    records = []
    for values in json.loads(text):
        goldens = {name: Matches(**matches) for name, matches in values["goldens"].items()}
        records.append(GateRecord(**{**values, "photos": Matches(**values["photos"]), "goldens": goldens}))
    return tuple(records)


def match_detections(
    reference: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor], *, above: float = MATCHED_SCORE
) -> Matches:
    """Compare two runs' detections of one image.

    Args:
        reference, other: boxes_xyxy [N, 4], scores [N] and labels [N] of each.
        above: detections with higher scores are counted.
    """
    is_same = (box_iou(reference[0], other[0]) > MATCHED_IOU) & (reference[2][:, None] == other[2][None])
    counted, other_counted = reference[1] > above, other[1] > above
    return Matches(
        int(counted.sum()),
        int((is_same.any(dim=1) & counted).sum()),
        int(other_counted.sum()),
        int((is_same.any(dim=0) & other_counted).sum()),
    )


def forbid_tf32() -> None:
    """Make float32 mean float32 on every GPU, for this process.

    torch's default is TensorFloat-32, 10 bits of mantissa, in convolutions but not in matrix products.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
