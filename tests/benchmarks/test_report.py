"""The page of benchmarks is what its records say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.vs_ray_data import PROGRAMS, medians, noise_note, ratios

MACHINE = {"cpu": "A processor", "cores": 2, "flags": ["avx2"], "memory_gib": 24}
ALL_METRICS = (
    "images_per_s", "work_images_per_s", "work_images_per_s_per_worker", "cpu_s_per_image", "start_s", "first_table_s",
    "peak_mib",
)  # fmt: skip


def record_of(name: str, results: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {
        "benchmark": name,
        "command": f"python benchmarks/{name}.py",
        "machine": MACHINE,
        "versions": {"python": "3.11.7"},
        "commit": "0123456789",
        "date": "2026-11-26",
        "load_before": 0.1,
        "rounds": [],
        "results": results,
        "ratios": {},
    } | rest


def a_round(htc: float, bare: float) -> dict[str, dict[str, Any]]:
    rates = {"htc": htc, "ray_data": bare / 2, "bare": bare, "bare_all": bare}
    return {program: dict.fromkeys(ALL_METRICS, rates[program]) for program in PROGRAMS}


def test_a_page_has_the_numbers_commands_and_machines_of_its_records() -> None:
    results = {
        "parts_s": {"backbone": 2.153, "rpn": 0.984},
        "lines": [{"shards": 1000, "cpu_s": 0.5}, {"shards": 1000000, "mib": 812}],
        "outputs": {"rounds": 5, "parts": {"count": [10.25, 0.5]}, "compacted": {"count": 0.125}},
        "input": [1, 3, 800, 1216],
        "peer": {"ours_mask_rcnn_s": 2.0, "torchvision_s": 5.0, "detections": 100},
    }
    records = [record_of("model_cpu", results, ratios={"peer_over_ours": 1.5}), record_of("new_one", {"x_s": 1})]
    page = report.render(records)
    assert "`python benchmarks/model_cpu.py`: machine A, 2026-11-26, commit 0123456789, load 0.1 before" in page
    for row in (
        "| parts s: backbone | 2.15 |",
        "| 1,000,000 |  | 812 |",
        "| compacted | 0.125 |",
        "| parts | 10.2 / 0.5 |",
        "| outputs: rounds | 5 |",
        "| input | 1 x 3 x 800 x 1216 |",
        "| torchvision s over ours mask rcnn s | 2.5 |",
        "| peer over ours | 1.5 |",
        "| x s | 1 |",
        "| A | A processor | 2 | avx2 | 24 GiB | python 3.11.7 |",
    ):
        assert row in page.splitlines()
    assert "## New one" in page


def test_what_has_no_record_is_not_measured() -> None:
    page = report.render([])
    assert page.count("Not measured.") == len(report.SECTIONS)
    assert "Not measured. It needs a GPU. Command: python benchmarks/gpu_model.py" in page


def test_the_comparison_with_ray_data_has_medians_faults_and_the_noise(tmp_path: Path) -> None:
    rounds = [a_round(3.0, 4.0), a_round(5.0, 4.0)]
    settings = {"images": 8, "workers": 2, "model": "m", "weights": "demo", "small": False, "fault_images": 8}
    note = noise_note(rounds)
    results = {
        "settings": settings,
        "medians": medians(rounds),
        "noise": note,
        "faults": {"killed": {"redone_images": 0, "statuses": {"ok": 8}}},
    }
    record = record_of("vs_ray_data", results, rounds=rounds, ratios=ratios(rounds))
    assert report.draw([record], tmp_path) == ["vs_ray_data.svg"]
    before = (tmp_path / "vs_ray_data.svg").read_bytes()
    report.draw([record], tmp_path)
    assert (tmp_path / "vs_ray_data.svg").read_bytes() == before
    page = report.render([record], ["vs_ray_data.svg"])
    assert "htc in round 2: 1.25 times bare" in page
    assert "| images per s | 4 | 2 | 4 | 4 |" in page
    assert "| htc share of bare | 1 |" in page
    assert "| killed | 0 | ok 8 |" in page
    assert "![Against Ray Data](plots/vs_ray_data.svg)" in page


def test_ratios_are_of_programs_in_the_same_round() -> None:
    rounds: list[dict[str, Any]] = [a_round(2.0, 2.0), a_round(30.0, 40.0), {"htc": {}}]
    assert ratios(rounds)["htc_images_per_s_over_ray_data"] == 1.75
    assert ratios([{"htc": {}}]) == {}
    assert noise_note([a_round(4.0, 4.0)]) == ""


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps({"benchmark": "x"}))
    with pytest.raises(ValueError, match=r"bad\.json is no record"):
        report.load_records(tmp_path)


def test_the_page_in_the_repository_is_made_from_the_records_there() -> None:
    plots = sorted(path.name for path in (report.PAGE.parent / "plots").glob("*.svg"))
    page = report.render(report.load_records(report.RESULTS), plots)
    assert report.PAGE.read_text() == page, "run python benchmarks/report.py"
