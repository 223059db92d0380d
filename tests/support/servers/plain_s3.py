"""A bucket in memory behind a small part of S3's API; keys are not changed.

SeaweedFS keeps keys as paths of a tree and cannot hold `a//b` beside `a/b`; Amazon S3 can.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    served: list[tuple[str, int]]

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self, *, has_body: bool) -> None:
        # urlsplit would read "//a" as a host.
        path, _, query = self.path.partition("?")
        bucket, _, key = path.lstrip("/").partition("/") if not path.startswith("//") else ("", "", "")
        asked = {name: values[0] for name, values in parse_qs(urlsplit(f"?{query}").query, True).items()}
        key = unquote(key)
        if bucket == "bucket" and not key:
            self._send(200, self._listing(asked), "application/xml", has_body=has_body)
        elif key in self.objects:
            self._send_object(key, self.headers.get("Range"), has_body=has_body)
        else:
            error = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            self._send(404, error, "application/xml", has_body=has_body)

    def _listing(self, asked: dict[str, str]) -> bytes:
        prefix, delimiter, after = asked.get("prefix", ""), asked.get("delimiter", ""), asked.get("start-after", "")
        contents, folders = [], dict[str, None]()
        for key in sorted(self.objects, key=str.encode):
            if not key.startswith(prefix) or key.encode() <= after.encode():
                continue
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if mark:
                folders[f"{prefix}{head}{mark}"] = None
            else:
                contents.append(key)
        most = int(asked.get("max-keys", "1000"))
        parts = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            f"<LastModified>1970-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{md5(self.objects[key]).hexdigest()}&quot;</ETag></Contents>"  # ETags are MD5 on S3
            for key in contents[:most]
        ]
        parts += [f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in folders]
        count = len(parts)
        text = f"<ListBucketResult><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>{''.join(parts)}"
        return f"{text}</ListBucketResult>".encode()

    def _send_object(self, key: str, asked: str | None, *, has_body: bool) -> None:
        whole = self.objects[key]
        etag = md5(whole).hexdigest()  # ETags are MD5 on S3
        if asked is None or not has_body:
            self._send(200, whole, "image/jpeg", has_body=has_body, etag=etag)
        else:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = whole[int(first) : int(last) + 1 if last else None]
            place = f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}"
            self._send(206, part, "image/jpeg", has_body=True, etag=etag, content_range=place)
            self.served.append((key, len(part)))

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str,
        *,
        has_body: bool,
        etag: str | None = None,
        content_range: str | None = None,
    ) -> None:
        self.send_response(status)
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.send_header("Server", "AmazonS3")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.send_header("ETag", f'"{etag or md5(body).hexdigest()}"')  # ETags are MD5 on S3
        self.end_headers()
        if has_body:
            self.wfile.write(body)


@contextmanager
def plain_s3(objects: dict[str, bytes], served: list[tuple[str, int]] | None = None) -> Iterator[str]:
    """Serve `s3://bucket` with these objects; yields the endpoint.

    Args:
        served: gets the key and the number of bytes of each range that is sent.
    """
    handler = type("Handler", (_Handler,), {"objects": objects, "served": [] if served is None else served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
