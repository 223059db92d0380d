"""A cluster's Jobs API in memory, and a dashboard that answers a few requests over HTTP."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from jobs.cluster.errors import ClusterError, NoSuchJobError
from jobs.cluster.job_state import JobState, Phase

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@dataclass
class FakeJobs:
    """`JobsClient` without a cluster.

    jobs: by id, in the order of submission. specs: the job.yaml of each, as the cluster got it. submitted: all
    requests. rivals: jobs that appear while one is being submitted. on_tail: replaces the pieces of `tail`.
    """

    jobs: dict[str, JobState] = field(default_factory=dict)
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    rivals: list[JobState] = field(default_factory=list)
    pieces: list[str | Exception] = field(default_factory=list)
    on_tail: Callable[[str], Iterator[str]] | None = None
    note: str = ""
    url: str = "http://cluster:8265"
    ray_version: str = "2.60.0"

    def submit(
        self, *, entrypoint: str, job_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        self.jobs.update({rival.job_id: rival for rival in self.rivals})
        if job_id in self.jobs:
            raise ClusterError(f"The cluster refuses: {job_id} already exists.")
        self.submitted.append({"entrypoint": entrypoint, "runtime_env": runtime_env, "metadata": metadata})
        self.specs[job_id] = yaml.safe_load((Path(runtime_env["working_dir"]) / "job.yaml").read_text())
        self.jobs[job_id] = JobState(
            job_id,
            "pending",
            output_uri=metadata["htc_output"],
            input_uri=metadata["htc_input"],
            run=metadata["htc_run"],
            storage=json.loads(metadata["htc_storage"]),
            started=NOON + timedelta(seconds=len(self.jobs)),
        )

    def state(self, job_id: str) -> JobState:
        if job_id not in self.jobs:
            raise NoSuchJobError(f"no job {job_id}")
        return self.jobs[job_id]

    def states(self) -> list[JobState]:
        return list(self.jobs.values())[::-1]

    def stop(self, job_id: str) -> bool:
        was_running = not self.state(job_id).is_ended
        if was_running:
            self.end(job_id, "stopped")
        return was_running

    def end(self, job_id: str, phase: Phase, exit_code: int | None = None, message: str = "") -> None:
        """Let a job end."""
        self.jobs[job_id] = replace(
            self.jobs[job_id], phase=phase, exit_code=exit_code, message=message, ended=NOON + timedelta(minutes=5)
        )

    def logs(self, job_id: str) -> str:
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    def tail(self, job_id: str) -> Iterator[str]:
        return self.on_tail(job_id) if self.on_tail else self.next_pieces()

    def next_pieces(self) -> Iterator[str]:
        """Yield the pieces up to an exception, which is raised once; the next call starts from the beginning."""
        for number, piece in enumerate(self.pieces):
            if isinstance(piece, Exception):
                del self.pieces[number]
                raise piece
            yield piece


@contextmanager
def dashboard(
    *, status: int = 200, ray_version: str = "", body: str | None = None, token: str | None = None
) -> Iterator[str]:
    """Serve /api/version and an empty list of jobs on 127.0.0.1, and take any job; yields the URL.

    Args:
        status: of every answer. body: instead of JSON. token: refuse requests without it, as Ray does.
    """
    import ray

    version = {"version": "4", "ray_version": ray_version or ray.__version__, "ray_commit": "0", "session_name": "s"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Every package exists already, so that none is uploaded.
            self._answer(version if self.path == "/api/version" else [])

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer({"job_id": asked["submission_id"], "submission_id": asked["submission_id"]})

        def _answer(self, answer: object) -> None:
            content = (json.dumps(answer) if body is None else body).encode()
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                content = b"Unauthorized: Missing authentication token"
                self.send_response(401)
            else:
                self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
