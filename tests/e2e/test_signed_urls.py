"""A run by the command over signed URLs: no signature in its tables, its records, its logs or its output."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.output.results import open_results
from tests.support.paths import ROOT
from tests.support.servers.signing_host import everything_in, signing_host

pytestmark = pytest.mark.slow
SIGNATURE, TOKEN, OLD = "hush-signature-7c7c7c7c", "hush-token-5b5b5b5b", "hush-expired-1d1d1d1d"


def test_a_listing_of_signed_urls_is_run_and_no_secret_is_shown(tmp_path: Path) -> None:
    # Ray's sockets are in it, and a socket's path has at most 107 characters.
    ray_folder = Path(tempfile.mkdtemp(prefix="htc-s-"))
    own = {"RAY_TMPDIR": str(ray_folder), "HTC_KEEP_RAY_FOLDER": "1", "OMP_NUM_THREADS": "1"}
    own["HTC_CACHE"] = str(tmp_path / "cache")
    with signing_host() as host:
        expired = host.sign(OLD)[0]
        urls = [*host.sign(SIGNATURE)[1:], expired]
        lines = [*urls, f"https://{TOKEN}@127.0.0.1:1/b.jpg", f"hdfs://place/c.jpg?token={TOKEN}", "none.jpg"]
        (tmp_path / "l.csv").write_text(
            "\n".join(["id;link", *(f"{place};{line}" for place, line in enumerate(lines))])
        )
        command = [sys.executable, "-m", "jobs", "run", "l.csv", "out", "--weights", "untrained", "--workers", "1"]
        command += ["--model", "htc_lite0_fpn", "--max-error-rate", "0.5"]
        environment = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "separated by semicolons, names from the column link" in said
    rows = open_results(str(tmp_path / "out")).images().to_pylist()
    statuses = {row["uri"].rpartition("/")[2]: row["status"] for row in rows}
    assert len(rows) == len(lines)
    assert (statuses["0.jpg"], statuses["b.jpg"], statuses["none.jpg"]) == ("failed", "unreadable", "missing")
    assert statuses["c.jpg?token=***"] == "unreadable"
    assert list(statuses.values()).count("ok") == 8
    texts = {"said": said} | everything_in(tmp_path / "out") | everything_in(ray_folder)
    shutil.rmtree(ray_folder, ignore_errors=True)
    assert any("worker-" in name for name in texts)
    for secret in (SIGNATURE, TOKEN, OLD):
        assert not [name for name, text in texts.items() if secret in text]
