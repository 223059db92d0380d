"""An HTTP proxy on 127.0.0.1 in front of a store that injects faults into requests.

It forwards requests unchanged, with their Host header, so that S3 signatures stay valid. Whether a request meets a
fault is a function of the seed, the key and the number of earlier requests for that key: with the same seed the same
requests fail, in whatever order threads send them.
"""

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

Kind = Literal[
    "error_500",
    "slow_down",
    "forbidden",
    "request_timeout",
    "stall",
    "cut",
    "truncated",
    "wrong_length",
    "lost_answer",
]
# Status, code and message as Amazon S3 gives them (API reference, "Error responses"); RequestTimeout is a 400 there.
_ANSWERS: dict[str, tuple[int, str, str]] = {
    "error_500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
    "request_timeout": (
        400,
        "RequestTimeout",
        "Your socket connection to the server was not read from or written to within the timeout period.",
    ),
}
_UPSTREAM_TIMEOUT_S = 120.0
# Set anew by this proxy, or meant for one hop only.
_HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "expect", "keep-alive"}


@dataclass(frozen=True)
class Fault:
    """A kind of fault and the requests that meet it.

    kind: "error_500", "slow_down", "forbidden" and "request_timeout" answer so without a request to the store;
        "stall" waits `stall_s` and then forwards; "cut" closes the connection without an answer and without a
        request to the store; "lost_answer" forwards the request and then cuts; "truncated" announces the whole body
        and sends half; "wrong_length" announces half and sends all of it.
    rate: the share of requests that meet it, 0 to 1.
    methods: HTTP methods that meet it.
    keys: a regular expression searched for in the request's path with its query.
    first: only the first so many requests for one key meet it; None for all.
    limit: at most so many requests in all; None for no limit.
    """

    kind: Kind
    rate: float = 1.0
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    keys: str = ""
    stall_s: float = 0.0
    first: int | None = None
    limit: int | None = None


class FaultDice:
    """Chooses the fault of each request; `counts` holds how many requests met each kind."""

    def __init__(self, faults: Iterable[Fault] = (), *, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self._faults = tuple(faults)
        self._seed = seed
        self._requests_of: Counter[str] = Counter()
        self._lock = threading.Lock()

    def draw(self, method: str, path: str) -> Fault | None:
        """Return the first fault that applies to this request; None to forward it."""
        with self._lock:
            turn = self._requests_of[f"{method} {path}"]
            self._requests_of[f"{method} {path}"] += 1
            for number, fault in enumerate(self._faults):
                if self._is_due(fault, method, path, turn):
                    chance = random.Random(f"{self._seed} {number} {method} {path} {turn}").random()
                    if chance < fault.rate:
                        self.counts[fault.kind] += 1
                        return fault
        return None

    def _is_due(self, fault: Fault, method: str, path: str, turn: int) -> bool:
        if method not in fault.methods or not re.search(fault.keys, path):
            return False
        if fault.first is not None and turn >= fault.first:
            return False
        return fault.limit is None or self.counts[fault.kind] < fault.limit


class FaultProxy:
    """The proxy; a context manager."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.requests = 0
        self.dice = FaultDice()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self

    @property
    def counts(self) -> Counter[str]:
        """Requests that met a fault, by kind, since the last `inject`."""
        return self.dice.counts

    @property
    def endpoint_url(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def inject(self, faults: Iterable[Fault] = (), *, seed: int = 0) -> None:
        """Inject these faults and no others from now on; reset the counts."""
        self.dice = FaultDice(faults, seed=seed)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="fault-proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up, which faults make them do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        body = self._read_body()
        proxy = self.server.proxy
        proxy.requests += 1
        fault = proxy.dice.draw(self.command, self.path)
        kind = fault.kind if fault else None
        if fault and fault.kind in _ANSWERS:
            self._refuse(*_ANSWERS[fault.kind])
            return
        if fault and kind == "stall":
            time.sleep(fault.stall_s)
        if kind == "cut":
            self._hang_up()
            return
        try:
            status, headers, payload = self._ask(body)
        except (OSError, http.client.HTTPException):
            # An unreachable store is a closed connection to the client too.
            self._hang_up()
            return
        if kind == "lost_answer":
            self._hang_up()
            return
        self._answer(status, headers, payload, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that http.server looks for

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # One connection for each request: a closed idle connection would look like a fault that was not injected.
        port = self.server.proxy.upstream_port
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=_UPSTREAM_TIMEOUT_S)
        with contextlib.closing(upstream):
            return self._exchange(upstream, body)

    def _exchange(self, upstream: http.client.HTTPConnection, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_HEADERS:
                upstream.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body or None)
        with upstream.getresponse() as response:
            payload = response.read()
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_HEADERS]
            if self.command == "HEAD":
                kept.append(("Content-Length", response.getheader("Content-Length") or "0"))
            return response.status, kept, payload

    def _answer(self, status: int, headers: list[tuple[str, str]], payload: bytes, kind: Kind | None) -> None:
        # Half of a body is less than all of it; an empty one has no half.
        half = len(payload) // 2
        is_broken = kind in ("truncated", "wrong_length") and half > 0
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(half if is_broken and kind == "wrong_length" else len(payload)))
        self.end_headers()
        self.wfile.write(payload[:half] if is_broken and kind == "truncated" else payload)
        if is_broken:
            self._hang_up()

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
