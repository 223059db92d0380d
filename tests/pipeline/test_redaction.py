"""Secrets are removed from all text that leaves the process."""

import io
import logging
from pathlib import Path

import pytest

from pipeline.driver.progress import LineProgress
from pipeline.output.json_files import read_json, write_json
from pipeline.redaction import RedactingFormatter, redact
from pipeline.storage.storage import Storage
from pipeline.text import one_line

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot reach https://user:hunter2@store/bucket", "cannot reach https://***@store/bucket"),
        (
            "https://b.s3.aws.com/a.jpg?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2Fus&X-Amz-Signature=abc&x=1 failed",
            "https://b.s3.aws.com/a.jpg?X-Amz-Credential=***&X-Amz-Signature=***&x=1 failed",
        ),
        ("https://account.blob.core.windows.net/c/a.jpg?sv=2024&sig=abc%3D", "…/a.jpg?sv=2024&sig=***"),
        (
            "headers {'Authorization': 'AWS4-HMAC-SHA256 Credential=x', 'Host': 'h'}",
            "{'Authorization': '***', 'Host': 'h'}",
        ),
        ("AccountName=a;AccountKey=Eby8vdM02xNO/w==;Blob=b", "AccountName=a;AccountKey=***;Blob=b"),
        ("The key AKIAIOSFODNN7EXAMPLE is unknown", "The key *** is unknown"),
        ("s3://bucket/key/token/secret.jpg: not found", "s3://bucket/key/token/secret.jpg: not found"),
        ("12:30 user@host C:/x", "12:30 user@host C:/x"),
    ],
)
def test_secrets_are_recognised_by_their_shape(text: str, expected: str) -> None:
    assert redact(text).endswith(expected.removeprefix("…").removeprefix("{"))


def test_secrets_of_the_environment_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token-file")
    monkeypatch.setenv("SOME_TOKEN", "short")
    redacted = redact(f"signature made with {SECRET} from /var/run/token-file, short")
    assert redacted == "signature made with *** from /var/run/token-file, short"


def test_secrets_in_fsspec_settings_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSPEC_S3", f'{{"key": "minioadmin", "secret": "{SECRET}", "profile": "nightly-photos"}}')
    monkeypatch.setenv("FSSPEC_GS", '{"broken')
    assert redact(f"{SECRET} of minioadmin, nightly-photos") == "*** of ***, nightly-photos"


def test_log_lines_and_tracebacks_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("under-test")
    log.addHandler(handler)
    try:
        raise OSError(f"refused {SECRET}")
    except OSError:
        log.exception("with %s", SECRET)
    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count("***") == 2


def test_rows_notes_and_the_summary_are_redacted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert SECRET not in one_line(OSError(f"refused {SECRET}"))
    stream = io.StringIO()
    LineProgress(stream).note(f"refused {SECRET}")
    assert stream.getvalue() == "refused ***\n"
    storage = Storage()
    write_json(storage, str(tmp_path / "summary.json"), {"reason": f"refused {SECRET}"}, is_redacted=True)
    assert read_json(storage, str(tmp_path / "summary.json")) == {"reason": "refused ***"}
