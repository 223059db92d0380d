"""A run from s3:// to s3:// on a real server, by the command line: run, resume, query, show, refusals."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from htc_model.network.detector import build_model
from htc_model.weights.load import save_weights
from htc_model.weights.untrained import untrained_state
from pipeline.driver.run_job import worker_settings
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.messages import Assignment
from pipeline.output.commit import commit_shard
from pipeline.output.results import open_results
from pipeline.output.rows import build_image_row
from pipeline.runs.open import open_run
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.weights.fingerprint import compute_fingerprint
from pipeline.worker.worker import Worker
from tests.support.paths import PHOTOS
from tests.support.servers.s3_server import READER, WRITER, WRONG, Key, S3Server

pytestmark = pytest.mark.xdist_group("s3")
PRESET = "htc_lite0_fpn"
ODD_NAME = "sub/2 a#b%20?c ü.jpg"
Completed = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class RemoteRun:
    """A run that was interrupted after its first shard, and the results of the command that resumed it."""

    server: S3Server
    bucket: str
    spec: JobSpec
    folder: Path
    ray_folder: Path
    outcome: Completed
    first_shard: Mapping[str, object]

    @property
    def arguments(self) -> list[str]:
        """Return the command's arguments, except the two flags of the storage."""
        weights = ["--model", PRESET, "--weights", self.spec.model.weights]
        return ["run", self.spec.input.uri, self.spec.output.uri, *weights, "--shard-images", "2", "--workers", "1"]

    @property
    def storage(self) -> Storage:
        return Storage(self.spec.storage)

    def htc(self, *arguments: str, key: Key = WRITER) -> Completed:
        return htc(self.server, self.folder, self.ray_folder, *arguments, key=key)


def htc(server: S3Server, folder: Path, ray_folder: Path, *arguments: str, key: Key = WRITER) -> Completed:
    """Run the command as a user would, with a key in the environment."""
    own = {"HTC_CACHE": str(folder / "cache"), "RAY_TMPDIR": str(ray_folder), "OMP_NUM_THREADS": "1"}
    own["HTC_KEEP_RAY_FOLDER"] = "1"
    command = [sys.executable, "-m", "jobs", *arguments, "--endpoint-url", server.endpoint_url]
    environment = {**os.environ, **key.environment(), **own}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def upload_input(bucket: str, storage: Storage) -> None:
    """Four small photos, one of them oddly named, and an empty file."""
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:4]):
        with Image.open(photo) as image:
            image.thumbnail((96, 96))
            sink = io.BytesIO()
            image.save(sink, format="JPEG")
        storage.write(f"{bucket}/in/{ODD_NAME if number == 2 else f'{number}.jpg'}", sink.getvalue())
    storage.write(f"{bucket}/in/sub/empty.jpg", b"")


def upload_weights(bucket: str, storage: Storage, folder: Path) -> str:
    """Write the untrained network's weights as a file, which counts as trained."""
    network = build_model(PRESET)
    path = folder / "lite0.safetensors"
    save_weights(path, untrained_state(network.state_dict()), network.config, {})
    storage.write(f"{bucket}/weights/lite0.safetensors", path.read_bytes())
    return f"{bucket}/weights/lite0.safetensors"


def commit_first_shard(spec: JobSpec, storage: Storage) -> None:
    """Leave the run as a kill after its first shard would; its rows are not from the network."""
    opened = open_run(spec, compute_fingerprint(spec.model, storage).to_dict(), storage, run="night")
    rows = [
        build_image_row(ref, shard=0, model="by hand", status="failed", error="a mark", attempts=7)
        for ref in opened.read_shard(0).images
    ]
    commit_shard(storage, spec.output.uri, "night", 0, rows, [])


@pytest.fixture(scope="module")
def remote_run(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteRun]:
    folder = tmp_path_factory.mktemp("s3-run")
    # Ray's sockets are in it, and a socket's path has at most 107 characters.
    ray_folder = Path(tempfile.mkdtemp(prefix="htc-s3-"))
    bucket = s3_server.make_bucket("htc-whole-run")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**WRITER.environment(), "HTC_CACHE": str(folder / "cache")}.items():
            patch.setenv(name, value)
        storage = Storage(StorageSection(endpoint_url=s3_server.endpoint_url))
        upload_input(bucket, storage)
        spec = load_spec(
            None,
            {
                "input.uri": f"{bucket}/in/",
                "output.uri": f"{bucket}/out",
                "storage.endpoint_url": s3_server.endpoint_url,
                "model.preset": PRESET,
                "model.weights": upload_weights(bucket, storage, folder),
                "compute.shard_images": 2,
            },
        )
        commit_first_shard(spec, storage)
        # The cache is empty: the command and its worker must fetch the weights themselves.
        shutil.rmtree(folder / "cache")
        first_shard = s3_server.files().info(f"{bucket}/out/images/run=night/part-00000.parquet")
        run = RemoteRun(s3_server, bucket, spec, folder, ray_folder, Completed([], 1), first_shard)
        outcome = run.htc(*run.arguments, "--max-error-rate", "1")
        yield RemoteRun(s3_server, bucket, spec, folder, ray_folder, outcome, first_shard)
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.mark.slow
def test_the_command_resumes_the_run_and_completes_it(remote_run: RemoteRun) -> None:
    outcome = remote_run.outcome
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "Resuming run night: 2 of 3 shards to go." in outcome.stdout + outcome.stderr
    results = open_results(remote_run.spec.output.uri, remote_run.storage)
    rows = results.images().to_pylist()
    names = ["0.jpg", "1.jpg", "3.jpg", ODD_NAME, "sub/empty.jpg"]
    assert [row["uri"] for row in rows] == [f"{remote_run.bucket}/in/{name}" for name in names]
    assert [row["status"] for row in rows] == ["failed", "failed", "ok", "ok", "unreadable"]
    assert {row["etag"] for row in rows} == {each.etag for each in remote_run.storage.list(remote_run.spec.input.uri)}
    found = results.instances().to_pylist()
    assert {row["uri"] for row in found} == {row["uri"] for row in rows if row["status"] == "ok"}
    path = f"{remote_run.bucket}/out/images/run=night/part-00000.parquet"
    assert remote_run.server.files().info(path) == remote_run.first_shard


@pytest.mark.slow
def test_the_instances_are_those_of_local_files(remote_run: RemoteRun, tmp_path: Path) -> None:
    overrides = {
        "input.uri": str(tmp_path / "in"),
        "output.uri": str(tmp_path / "out"),
        "model.preset": PRESET,
        "model.weights": str(remote_run.folder / "lite0.safetensors"),
    }
    for name in ("3.jpg", ODD_NAME):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(remote_run.storage.read(f"{remote_run.bucket}/in/{name}"))
    spec = load_spec(None, overrides)
    opened = open_run(spec, compute_fingerprint(spec.model).to_dict(), Storage(), run="night")
    worker = Worker(worker_settings(spec, "night"))
    worker.start()
    for index in range(opened.shard_count):
        worker.run_shard(opened.read_shard(index), Assignment(index, attempt=1, is_last=True))

    def seen(output: str, root: str) -> list[dict[str, object]]:
        rows = open_results(output, remote_run.storage).instances().to_pylist()
        names = {"uri", "instance", "category_id", "score", "bbox", "area", "mask"}
        return [
            {name: value for name, value in row.items() if name in names} | {"uri": row["uri"].removeprefix(root)}
            for row in rows
        ]

    here = seen(spec.output.uri, f"{spec.input.uri}/")
    assert len(here) > 0
    assert here == seen(remote_run.spec.output.uri, remote_run.spec.input.uri)


@pytest.mark.slow
def test_the_same_command_again_writes_nothing(remote_run: RemoteRun) -> None:
    before = list(remote_run.storage.list(remote_run.spec.output.uri))
    again = remote_run.htc(*remote_run.arguments, "--max-error-rate", "1")
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stdout + again.stderr
    assert list(remote_run.storage.list(remote_run.spec.output.uri)) == before


@pytest.mark.slow
def test_query_show_and_plan_read_remote_tables(remote_run: RemoteRun, tmp_path: Path) -> None:
    output = remote_run.spec.output.uri
    sql = "SELECT status, count(*) AS n FROM images GROUP BY status ORDER BY status"
    answer = remote_run.htc("query", output, sql, "--format", "csv")
    assert answer.stdout.split() == ["status,n", "failed,2", "ok,2", "unreadable,1"]
    shown = remote_run.htc("show", output, "--to", str(tmp_path), "--min-score", "0")
    assert shown.returncode == 0, shown.stderr
    assert len(list(tmp_path.glob("*.png"))) == 2
    fresh = [f"{remote_run.bucket}/elsewhere" if each == output else each for each in remote_run.arguments]
    plan = remote_run.htc("plan", *fresh[1:], "--no-model")
    assert plan.returncode == 0, plan.stderr
    assert "5" in plan.stdout
    assert not remote_run.storage.exists(f"{remote_run.bucket}/elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "place", "exit_code", "sentence"),
    [
        (WRONG, "in", 1, "check the credentials"),
        (READER, "out", 1, "No permission to write {bucket}/refused/runs/"),
        (WRITER, "bucket", 2, "The input s3://no-such-bucket/in does not exist."),
        (WRITER, "weights", 2, "There is no weights file {bucket}/weights/none.safetensors."),
    ],
)
def test_what_is_not_available_is_one_sentence(
    remote_run: RemoteRun, key: Key, place: str, exit_code: int, sentence: str
) -> None:
    source = "s3://no-such-bucket/in" if place == "bucket" else f"{remote_run.bucket}/in"
    weights = f"{remote_run.bucket}/weights/none.safetensors" if place == "weights" else "untrained"
    output = f"{remote_run.bucket}/refused"
    refused = remote_run.htc("run", source, output, "--model", PRESET, "--weights", weights, key=key)
    assert refused.returncode == exit_code, refused.stderr
    assert sentence.format(bucket=remote_run.bucket) in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not remote_run.storage.exists(output)


@pytest.mark.slow
def test_no_secret_is_written_anywhere(remote_run: RemoteRun) -> None:
    storage = remote_run.storage
    written = [each.uri for each in storage.list(remote_run.spec.output.uri)]
    assert {uri.rpartition(".")[2] for uri in written} == {"json", "parquet"}
    results = open_results(remote_run.spec.output.uri, storage)
    texts = [storage.read(uri).decode("latin-1") for uri in written]
    # Parquet is compressed: its rows are checked too.
    texts += [str(results.images().to_pylist()), remote_run.outcome.stdout, remote_run.outcome.stderr]
    logs = [path for path in remote_run.ray_folder.rglob("*") if path.is_file() and "logs" in path.parts]
    assert any("worker" in path.name for path in logs)
    texts += [path.read_text("latin-1") for path in logs]
    assert not [text for text in texts if WRITER.secret in text]
    assert not [text for text in texts if WRITER.access in text]
