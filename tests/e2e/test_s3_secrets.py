"""A run on a real S3 server with a key from an AWS profile that may not read all of its input: a refused image
is a row, and no secret is in the spec, the run's records, its tables or any log."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from pipeline.output.results import open_results
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.s3_server import LIMITED, LIMITED_BUCKET, S3Server

pytestmark = [pytest.mark.xdist_group("s3"), pytest.mark.slow]
SPEC = """
input: {{uri: s3://{bucket}/lists/photos.txt}}
output: {{uri: s3://{bucket}/out}}
model: {{preset: htc_lite0_fpn, weights: untrained}}
compute: {{workers: 1}}
retry: {{max_attempts: 2, max_error_rate: 0.5}}
storage:
  options:
    s3: {{profile: nightly, config_kwargs: {{s3: {{addressing_style: path}}}}}}
"""


@dataclass(frozen=True)
class ProfileRun:
    """The output and the results of the command."""

    outcome: subprocess.CompletedProcess[str]
    spec_text: str
    ray_folder: Path
    door: Storage


@pytest.fixture(scope="module")
def profile_run(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProfileRun]:
    folder = tmp_path_factory.mktemp("s3-secrets")
    # Ray's sockets are in it, and a socket's path has at most 107 characters.
    ray_folder = Path(tempfile.mkdtemp(prefix="htc-s3-"))
    limited, other = s3_server.make_bucket(LIMITED_BUCKET), s3_server.make_bucket("htc-somebody-elses")
    photo = io.BytesIO()
    Image.new("RGB", (64, 48), "olive").save(photo, format="JPEG")
    listing = f"../in/own.jpg\n{other}/theirs.jpg\n"
    s3_server.files().pipe({f"{limited}/in/own.jpg"[5:]: photo.getvalue(), f"{other}/theirs.jpg"[5:]: photo.getvalue()})
    s3_server.files().pipe(f"{limited}/lists/photos.txt"[5:], listing.encode())
    (folder / "config").write_text(f"[profile nightly]\nregion = us-east-1\nendpoint_url = {s3_server.endpoint_url}\n")
    (folder / "credentials").write_text(
        f"[nightly]\naws_access_key_id = {LIMITED.access}\naws_secret_access_key = {LIMITED.secret}\n"
    )
    spec = folder / "job.yaml"
    spec.write_text(SPEC.format(bucket=LIMITED_BUCKET))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    own = {
        "AWS_CONFIG_FILE": str(folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "HTC_CACHE": str(folder / "cache"),
        "RAY_TMPDIR": str(ray_folder),
        "HTC_KEEP_RAY_FOLDER": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "jobs", "run", "--spec", str(spec)]
    done = subprocess.run(command, env=plain | own, capture_output=True, text=True, timeout=240, check=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITED.environment().items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        door = Storage(StorageSection(endpoint_url=s3_server.endpoint_url))
        yield ProfileRun(done, spec.read_text(), ray_folder, door)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    shutil.rmtree(ray_folder, ignore_errors=True)


def test_key_and_endpoint_come_from_the_profile_and_a_refused_image_is_a_row(profile_run: ProfileRun) -> None:
    assert profile_run.outcome.returncode == 0, profile_run.outcome.stdout + profile_run.outcome.stderr
    rows = open_results(f"s3://{LIMITED_BUCKET}/out", profile_run.door).images().to_pylist()
    assert [(row["uri"], row["status"], row["error"]) for row in rows] == [
        (f"s3://{LIMITED_BUCKET}/in/own.jpg", "ok", None),
        (
            "s3://htc-somebody-elses/theirs.jpg",
            "failed",
            "No permission to read s3://htc-somebody-elses/theirs.jpg; check the credentials and the bucket's policy.",
        ),
    ]


def test_no_secret_is_in_the_spec_the_records_the_tables_or_a_log(profile_run: ProfileRun) -> None:
    output = f"s3://{LIMITED_BUCKET}/out"
    written = {each.uri: profile_run.door.read(each.uri).decode("latin-1") for each in profile_run.door.list(output)}
    assert {"run.json", "summary.json", "part-00000.parquet"} <= {uri.rpartition("/")[2] for uri in written}
    logs = [path for path in profile_run.ray_folder.rglob("*") if path.is_file() and "logs" in path.parts]
    assert any(path.name.startswith("worker-") for path in logs)
    texts = written | {str(path): path.read_text("latin-1") for path in logs}
    # Parquet is compressed: its rows are checked too.
    texts["rows"] = str(open_results(output, profile_run.door).images().to_pylist())
    texts |= {"spec": profile_run.spec_text, "stdout": profile_run.outcome.stdout, "stderr": profile_run.outcome.stderr}
    for secret in (LIMITED.secret, LIMITED.access):
        assert not [name for name, text in texts.items() if secret in text]
    assert "nightly" in next(text for uri, text in written.items() if uri.endswith("run.json"))
