"""What a benchmark prints becomes a record with its machine, versions and command."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import record

PRINTED = {
    "benchmark": "sample",
    "shards_per_cpu_s": 10.5,
    "ratios": {"peer": 2.0},
    "machine": {"cpu": "other", "threads": 1},
}


def test_the_last_line_is_recorded_with_the_machine(tmp_path: Path) -> None:
    script = f"print('a round'); print({json.dumps(PRINTED)!r})"
    assert record.run([sys.executable, "-c", script], tmp_path, None) == 0
    written = json.loads((tmp_path / "sample.json").read_text())
    assert written["results"] == {"shards_per_cpu_s": 10.5}
    assert written["ratios"] == {"peer": 2.0}
    assert written["machine"] == {**record.machine(), "threads": 1}
    assert written["versions"]["python"] == sys.version.split()[0]
    assert written["cpu_s"] >= 0


def test_nothing_is_recorded_of_a_benchmark_that_failed(tmp_path: Path) -> None:
    script = f"print({json.dumps(PRINTED)!r}); raise SystemExit(3)"
    assert record.run([sys.executable, "-c", script], tmp_path, None) == 3
    assert list(tmp_path.iterdir()) == []


def test_objects_before_the_last_line_are_kept() -> None:
    assert record.objects_in('{"a": 1}\nrecorded\n{not json\n') == {"a": 1}
    assert record.objects_in('{"a": 1}\n{"a": 2}\n{"b": 3}') == {"b": 3, "lines": [{"a": 1}, {"a": 2}]}
    with pytest.raises(ValueError, match="no line"):
        record.objects_in("text\n[1]\n")


def test_options_come_before_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'print("{\\"benchmark\\": \\"x\\", \\"a\\": 1}")'
    words = ["record.py", "run", "--results", str(tmp_path), "--name", "small", "--", sys.executable, "-c", script]
    monkeypatch.setattr(sys, "argv", words)
    assert record.main() == 0
    assert json.loads((tmp_path / "small.json").read_text())["results"]["a"] == 1
