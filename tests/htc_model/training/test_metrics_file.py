"""The file of training metrics, also after a kill."""

from htc_model.training.metrics_file import append_metrics, drop_metrics_after, read_metrics


def test_lines_are_read_back_and_half_a_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    append_metrics(path, {"step": 1, "losses": {"total": 2.5}})
    append_metrics(path, {"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1, "losses": {"total": 2.5}}, {"step": 2}]


def test_lines_after_a_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_metrics_after(path, 1)
    assert not path.exists()
    for step in (1, 2, 3):
        append_metrics(path, {"step": step})
    with path.open("a") as file:
        file.write('{"st')
    drop_metrics_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
