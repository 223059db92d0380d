"""`htc metrics`: the metrics of outputs and schedules, served over HTTP, written to a file, or printed."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from jobs.monitoring.metrics import METRICS, OUTPUT_METRICS, REFRESHED, Gauges, Sample, output_samples
from jobs.monitoring.output_status import OutputReader, OutputStatus
from jobs.terminal.console import say
from jobs.terminal.output_file import atomic_output
from pipeline.errors import SpecError
from pipeline.signals import StopRequest
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri
from pipeline.text import count_of

EVERY_S = 60.0
POLL_S = 0.5

ExtraSamples = Callable[[], Iterable[Sample]]


class Snapshot:
    """The samples of outputs as they were read last; a scrape waits for no store."""

    def __init__(
        self, readers: Sequence[OutputReader], extra: ExtraSamples = tuple, clock: Callable[[], float] = time.time
    ) -> None:
        """`extra`: samples that are computed at each scrape. `clock`: seconds since 1970."""
        self._readers = readers
        self._extra = extra
        self._clock = clock
        self._statuses: list[OutputStatus] = []
        self._refreshed: float | None = None

    def refresh(self) -> list[OutputStatus]:
        """Read the outputs."""
        self._statuses = [reader.read() for reader in self._readers]
        self._refreshed = self._clock()
        return self._statuses

    def samples(self) -> Iterator[Sample]:
        """Yield the samples; those of outputs as of the last `refresh`."""
        for status in self._statuses:
            yield from output_samples(status)
        if self._refreshed is not None:
            yield Sample(REFRESHED, (), self._refreshed)
        yield from self._extra()

    def registry(self) -> CollectorRegistry:
        """Return what Prometheus' client serves and writes."""
        registry = CollectorRegistry()
        registry.register(Gauges(self.samples, METRICS))
        return registry


def export_metrics(
    outputs: Sequence[str],
    storage: Storage,
    *,
    listen: str | None = None,
    textfile: Path | None = None,
    every_s: float = EVERY_S,
    expect_every_s: float | None = None,
    extra: ExtraSamples = tuple,
) -> int:
    """Serve, write or print the metrics of outputs.

    Args:
        listen: HOST:PORT to serve on until a signal comes. textfile: the file to write, for node_exporter. Without
            both, the metrics go to stdout.
        every_s: seconds between two looks at the outputs while serving.
        expect_every_s: see `OutputReader`. extra: further samples, computed at each scrape.

    Returns:
        The exit code: 1 when an output could not be read or holds no run (not while serving), else 0.

    Raises:
        SpecError: the address or the file cannot be used.
    """
    if textfile is not None and textfile.suffix != ".prom":
        raise SpecError(f"node_exporter reads files named *.prom only; name --textfile so, not {textfile.name}.")
    readers = [OutputReader(absolute_uri(uri), storage, expect_every_s=expect_every_s) for uri in outputs]
    snapshot = Snapshot(readers, extra)
    if listen is not None:
        _serve(snapshot, listen, every_s)
        return 0
    problems = list(_problems(snapshot.refresh()))
    text = generate_latest(snapshot.registry())
    if textfile is None:
        sys.stdout.write(text.decode())
    else:
        with atomic_output(textfile) as file:
            file.write(text)
        # Written for another user's node_exporter.
        textfile.chmod(0o644)
    for problem in problems:
        say(problem)
    return 1 if problems else 0


class _Server(Protocol):
    def shutdown(self) -> None: ...

    def server_close(self) -> None: ...


@contextmanager
def serving_metrics(registry: CollectorRegistry, listen: str) -> Iterator[str]:
    """Serve the metrics of a registry over HTTP during the block.

    Args:
        listen: HOST:PORT; port 0 takes a free one.

    Yields:
        The address that it listens on.

    Raises:
        SpecError: the address cannot be used.
    """
    host, port = parse_address(listen)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise SpecError(
            f"--listen {listen}: that address cannot be used: {error.strerror or error}; name another port."
        ) from None
    with closing(_Closing(server)):
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{server.server_address[1]}/metrics"
    thread.join()


class _Closing:
    def __init__(self, server: _Server) -> None:
        self._server = server

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def parse_address(listen: str) -> tuple[str, int]:
    """Split HOST:PORT, or a PORT of the loopback address.

    Raises:
        SpecError: it is neither.
    """
    host, colon, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (colon and not host):
        raise SpecError(f"--listen takes HOST:PORT, such as 127.0.0.1:9877 or 0.0.0.0:9877, not {listen!r}.")
    return host.strip("[]") or "127.0.0.1", int(port)


def _serve(snapshot: Snapshot, listen: str, every_s: float) -> None:
    said: set[str] = set()
    with StopRequest() as stop, serving_metrics(snapshot.registry(), listen) as address:
        statuses = snapshot.refresh()
        say(f"Metrics of {count_of(len(statuses), 'output')} are on {address}, read every {every_s:g} s.")
        while not stop.is_set:
            # Each sentence once, as long as it holds.
            problems = set(_problems(statuses))
            for problem in sorted(problems - said):
                say(problem)
            said = problems
            read_at = time.monotonic()
            while not stop.is_set and time.monotonic() - read_at < every_s:
                time.sleep(POLL_S)
            if not stop.is_set:
                statuses = snapshot.refresh()


def _problems(statuses: Iterable[OutputStatus]) -> Iterator[str]:
    for status in statuses:
        if status.problem:
            yield f"{status.output} cannot be read: {status.problem}."
        elif not status.runs:
            yield f"{status.output} holds no run of htc; is that its name?"


def output_registry(status: OutputStatus) -> CollectorRegistry:
    """Return a registry with the metrics of one output, as they are now."""
    registry = CollectorRegistry()
    samples = list(output_samples(status))
    registry.register(Gauges(lambda: samples, OUTPUT_METRICS))
    return registry
