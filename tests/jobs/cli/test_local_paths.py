"""A URI is refused where a local path is required: otherwise a folder called `s3:` would be created."""

from pathlib import Path

import pytest

from jobs.cli.program import main
from tests.support.builders.outputs import Output


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "OUTPUT", "--to", "s3://bucket/pngs"),
        ("query", "OUTPUT", "SELECT 1", "--output", "s3://bucket/answer.csv"),
        ("query", "OUTPUT", "SELECT 1", "--output", "s3://bucket/answer.parquet"),
        ("weights", "verify", "s3://bucket/w.safetensors"),
        ("weights", "convert", "s3://bucket/w.pth", "w.safetensors"),
        ("weights", "convert", "w.pth", "gs://bucket/w.safetensors"),
        ("weights", "fetch", "coco", "--to", "s3://bucket/cache"),
    ],
)
def test_a_uri_is_refused_by_name(
    arguments: tuple[str, ...],
    output: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([output.uri if each == "OUTPUT" else each for each in arguments])
    uri = next(each for each in arguments if "://" in each)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert f"{uri} is not a local path" in said
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]
