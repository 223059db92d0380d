"""A web host that serves its files only with the current signature."""

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq
from PIL import Image


def jpeg_image(shade: int) -> bytes:
    """A JPEG image, 32 x 24."""
    sink = io.BytesIO()
    Image.new("RGB", (32, 24), (shade, 90, 40)).save(sink, format="JPEG")
    return sink.getvalue()


def tar_of(name: str, payload: bytes) -> bytes:
    """A tar with one member."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        header = tarfile.TarInfo(name)
        header.size = len(payload)
        tar.addfile(header, io.BytesIO(payload))
    return sink.getvalue()


class SigningHost:
    """The host. files: by path and the `id` of the query. signature: the current one."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.signature = ""
        self.files = {f"/{number}.jpg": jpeg_image(number * 20) for number in range(6)}
        self.files |= {"/get?7": jpeg_image(7), "/get?8": jpeg_image(8), "/x.tar": tar_of("m.jpg", jpeg_image(99))}

    def sign(self, signature: str) -> list[str]:
        """Accept only this signature from now on; return the signed URLs of all files."""
        self.signature = signature
        signed = "&".join(f"X-Amz-{name}={signature}" for name in ("Credential", "Date", "Signature"))
        urls = []
        for path in self.files:
            name, mark, number = path.partition("?")
            urls.append(f"{self.address}{name}?{f'id={number}&' if mark else ''}{signed}")
        return urls

    def find(self, target: str) -> bytes | None:
        """Return the requested file; None when the signature is not the current one."""
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        if query.get("X-Amz-Signature") != [self.signature]:
            return None
        return self.files.get(f"{parts.path}?{query['id'][0]}" if "id" in query else parts.path)


@contextmanager
def signing_host() -> Iterator[SigningHost]:
    """Run the host on 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = host.find(self.path)
            status = 200 if body is not None else 403
            body = body or b"no"
            size = len(body)
            begin, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if begin and status == 200:
                status, body = 206, body[int(begin) : int(end) + 1 if end else None]
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(body) - 1}/{size}")
            self.send_header("ETag", f'"{size}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host = SigningHost(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def everything_in(folder: Path) -> dict[str, str]:
    """Return the text of all files below a folder; of Parquet files, which are compressed, the rows as well."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_text("latin-1")
            if path.suffix == ".parquet":
                table = pq.read_table(path, partitioning=None)
                found[f"{path} (rows)"] = f"{table.to_pylist()} {table.schema.metadata}"
    return found
