"""The S3 server that tests share, and how many random examples were run."""

import re
import signal
import threading
import zlib
from collections.abc import Iterator

import fsspec
import pytest
from hypothesis import settings

from pipeline import signals
from tests.support.servers.s3_server import WRITER, S3Server, ServerUnavailableError

# `--hypothesis-profile=long`: for hours, not for CI. Tests ask for a share of `settings.default.max_examples`, so
# that the profile multiplies them all.
LONG_FACTOR = 200
# No test asserts a time: an example may take as long as a loaded machine needs.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
settings.register_profile("long", max_examples=100 * LONG_FACTOR, deadline=None, print_blob=True)

# Under nohup the tests, and the commands that they start, would ignore the signal that some of them are about.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# A shell that is not interactive starts its background jobs without Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that stops a run by a signal leaves no trace of it in the process; the next one would wait shorter."""
    monkeypatch.setattr(signals, "_was_stopped", threading.Event())


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server, started when the first test asks for it; one per test process.

    Tests that use it carry `xdist_group("s3")`, so that one process of several starts it.
    """
    try:
        server = S3Server(tmp_path_factory.mktemp("s3"))
        server.start()
    except ServerUnavailableError as error:
        pytest.skip(f"no S3 server here: {error}")
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3_bucket(s3_server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of the test's own, `s3://...`; the environment holds the key that may write."""
    for name, value in WRITER.environment().items():
        monkeypatch.setenv(name, value)
    # Clients are shared in a process, and remember the key they were opened with.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield s3_server.make_bucket(f"htc-{zlib.crc32(request.node.nodeid.encode()):08x}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


_examples: dict[str, int] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the examples of a hypothesis test, or of a history test that counts its own."""
    yield
    statistics = getattr(item, "hypothesis_statistics", "")
    counted = sum(int(number) for number in re.findall(r"(\d+) (?:passing|failing|invalid)\b", statistics))
    own = sum(value for name, value in item.user_properties if name == "examples" and isinstance(value, int))
    if counted or own:
        _examples[item.nodeid] = counted + own


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many random examples were run, with `--hypothesis-profile=long`."""
    if config.getoption("--hypothesis-profile", None) != "long" or not _examples:
        return
    terminalreporter.section("random examples")
    for nodeid, count in sorted(_examples.items()):
        terminalreporter.write_line(f"{count:9,} {nodeid}")
    terminalreporter.write_line(f"{sum(_examples.values()):9,} examples in all")
