"""A small Hugging Face Hub on 127.0.0.1, for `huggingface_hub.snapshot_download`: its files are those of folders."""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

_REVISION = "0123456789abcdef0123456789abcdef01234567"


class ModelHub:
    """Serves repositories, "owner/name" each; a name of `gated` is refused."""

    def __init__(self, repositories: Mapping[str, Path], *, gated: tuple[str, ...] = ()) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                status, body, headers = hub._answer(self.path.partition("?")[0].strip("/"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.requests: list[str] = []
        self._repositories, self._gated = repositories, gated
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "ModelHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:  # noqa: PLR0911
        parts = path.removeprefix("api/models/").split("/")
        name = "/".join(parts[:2])
        if name in self._gated:
            return 403, b"{}", {"X-Error-Code": "GatedRepo"}
        folder = self._repositories.get(name)
        if folder is None:
            return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        kind, revision, rest = parts[2], parts[3], "/".join(parts[4:])
        if revision not in {"main", _REVISION}:
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        if kind == "revision":
            return self._json({"id": name, "sha": _REVISION, "siblings": []})
        files = {each.name: each.read_bytes() for each in sorted(folder.iterdir())}
        if kind == "tree":
            listing = [
                {"type": "file", "path": each, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for each, body in files.items()
            ]
            return self._json(listing)
        if rest not in files:
            return 404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _REVISION}
        etag = hashlib.sha1(files[rest]).hexdigest()
        return 200, files[rest], {"ETag": f'"{etag}"', "X-Repo-Commit": _REVISION}

    @staticmethod
    def _json(values: object) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(values).encode(), {"Content-Type": "application/json"}
