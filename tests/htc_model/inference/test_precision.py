"""Which arithmetic `auto` means: the gate, its records, TensorFloat-32."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from htc_model.inference.precision import (
    GateRecord,
    Matches,
    choose_precision,
    device_kind,
    forbid_tf32,
    load_records,
    match_detections,
    parse_records,
)

H100, A100, V100 = (9, 0), (8, 0), (7, 0)
RECORD = GateRecord(
    preset="htc_r50_fpn",
    weights_sha256="ab" * 32,
    device="cuda sm_90",
    torch="2.14.1",
    photo_count=16,
    photos=Matches(200, 199, 201, 200),
    ap_images=152,
    mask_ap_fp32=30.0,
    mask_ap_bf16=29.95,
    goldens={"a golden": Matches(50, 50, 50, 50)},
)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Pretend that there is an H100."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H100)
    return torch.device("cuda")


def choose(device: torch.device, *records: GateRecord, requested: str = "auto") -> tuple[str, str]:
    choice = choose_precision(requested, "htc_r50_fpn", "ab" * 32, device, records)  # type: ignore[arg-type]
    return choice.precision, choice.reason


def test_auto_is_bf16_where_a_record_passes(card: torch.device) -> None:
    assert choose(card, RECORD) == ("bf16", "auto: passed the precision gate on cuda sm_90")


@pytest.mark.parametrize(
    "changes",
    [{"preset": "htc_r101_fpn"}, {"weights_sha256": "cd" * 32}, {"device": "cuda sm_80"}],
    ids=["preset", "weights", "device"],
)
def test_a_record_of_something_else_does_not_count(card: torch.device, changes: dict[str, str]) -> None:
    chosen, reason = choose(card, replace(RECORD, **changes))  # type: ignore[arg-type]
    assert chosen == "fp32"
    assert "no record" in reason
    assert "cuda sm_90" in reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"photos": Matches(200, 197, 200, 200)}, "98.5% of detections matched on photos"),
        ({"photos": Matches(200, 200, 200, 197)}, "98.5% of detections matched on photos"),
        ({"photos": Matches()}, "0.0% of detections matched on photos"),
        ({"goldens": {"a golden": Matches(50, 20, 50, 50)}}, "40.0% of detections matched on a golden"),
        ({"goldens": {}}, "no goldens"),
        ({"mask_ap_bf16": 29.8}, "changes by -0.20"),
        ({"mask_ap_bf16": 30.2}, "changes by +0.20"),
        ({"mask_ap_bf16": float("nan")}, "mask AP"),
        ({"ap_images": 0}, "on 0 held-out photos"),
    ],
)
def test_a_record_that_fails_the_gate_means_fp32(card: torch.device, changes: dict[str, object], reason: str) -> None:
    chosen, found = choose(card, replace(RECORD, **changes))  # type: ignore[arg-type]
    assert chosen == "fp32"
    assert reason in found


def test_the_last_record_decides(card: torch.device) -> None:
    assert choose(card, RECORD, replace(RECORD, ap_images=0))[0] == "fp32"
    assert choose(card, replace(RECORD, ap_images=0), RECORD)[0] == "bf16"


def test_without_bf16_cores_auto_is_fp32_whatever_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = replace(RECORD, device="cpu")
    assert choose(torch.device("cpu"), on_cpu) == ("fp32", "auto: cpu has no bfloat16 tensor cores")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: V100)
    assert choose(torch.device("cuda"), replace(RECORD, device="cuda sm_70"))[0] == "fp32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: A100)
    assert choose(torch.device("cuda"), replace(RECORD, device="cuda sm_80"))[0] == "bf16"


@pytest.mark.parametrize("requested", ["fp32", "bf16"])
def test_what_the_spec_says_is_taken(requested: str) -> None:
    assert choose(torch.device("cpu"), requested=requested) == (requested, "as the spec says")


def detections(*rows: tuple[float, float, float, float, float, int]) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].long()


def test_matches_count_what_both_have() -> None:
    reference = detections(
        (0, 0, 100, 100, 0.9, 1),  # the other has it
        (0, 0, 100, 100, 0.8, 2),  # of another label there
        (200, 0, 300, 100, 0.7, 1),  # moved too far there
        (400, 0, 500, 100, 0.31, 1),  # below 0.3 there, which is enough
        (600, 0, 700, 100, 0.2, 1),  # not counted
    )
    other = detections(
        (0, 0, 100, 102, 0.85, 1),
        (206, 0, 306, 100, 0.7, 1),
        (400, 0, 500, 100, 0.29, 1),
    )
    matches = match_detections(reference, other)
    assert matches == Matches(reference=4, reference_matched=2, other=2, other_matched=1)
    assert matches.share == 0.5
    assert match_detections(detections(), detections()).share == 0.0
    assert (matches + matches).reference == 8
    assert match_detections(reference, detections()) == Matches(4, 0, 0, 0)


def test_records_are_json() -> None:
    assert parse_records(json.dumps([RECORD.to_dict()])) == (RECORD,)


def test_the_programs_records_are_read() -> None:
    assert load_records()
    for record in load_records():
        assert record.device.startswith(("cpu", "cuda sm_"))
        assert record.photo_count > 0


def test_device_kinds(card: torch.device) -> None:
    assert device_kind(torch.device("cpu")) == "cpu"
    assert device_kind(card) == "cuda sm_90"


def test_float32_is_float32() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        forbid_tf32()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
