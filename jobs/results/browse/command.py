"""`htc browse`: serves the results of an output on the loopback address until Ctrl-C."""

import contextlib
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jobs.terminal.console import say, write_line
from pipeline.errors import SpecError
from pipeline.signals import StopRequest
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from pipeline.storage.config import StorageSection

HOST = "127.0.0.1"
DEFAULT_PORT = 8484
PACKAGES = ("starlette", "uvicorn")
POLL_S = 0.2
START_S = 30.0
# Answers that are being sent when Ctrl-C comes.
STOP_S = 2.0
# A store that does not answer holds up a picture for this long, not the minute that a run waits.
PICTURE_PATIENCE_S = 8.0
# Browsers ask for six things at once, for each of their windows.
MOST_CONNECTIONS = 200


def browse_output(
    output_uri: str,
    *,
    port: int | None = None,
    is_opening: bool | None = None,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Serve the results of an output until a signal comes.

    Args:
        port: None takes 8484, or a free one where that is taken; 0 takes a free one.
        is_opening: whether to open the browser; None does where there is a screen.

    Returns:
        The exit code, 0.

    Raises:
        SpecError: the extra `web` is not installed, or the port is taken.
        InputError: the folder holds no run.
    """
    check_packages()
    from jobs.results.browse.access import Access
    from jobs.results.browse.app import build_app
    from jobs.results.browse.tables import Tables

    storage = Storage(storage_section)
    tables = Tables(output_uri, storage, image_storage=_impatient(storage_section))
    access = Access()
    app, browser = build_app(tables, access)
    with contextlib.closing(browser), StopRequest() as stop, serving(app, port) as served:
        write_line(f"{served.address}/?token={access.token}")
        sys.stdout.flush()
        say(f"{output_uri} is shown at that address, to this machine only. Ctrl-C ends it.")
        if has_screen() if is_opening is None else is_opening:
            _open(f"{served.address}/?token={access.issue_once()}")
        while not stop.is_set and served.is_alive():
            served.thread.join(POLL_S)
        # Before the server ends, which waits for answers that are under way.
        browser.close()
    say("Ended.")
    return 0


def check_packages() -> None:
    """Check that the server's packages are there.

    Raises:
        SpecError: one is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise SpecError(f"htc browse needs {' and '.join(missing)}: pip install 'htc-batch[web]'.")


@dataclass
class Served:
    """A server that runs in a thread; address: without a slash at its end."""

    address: str
    thread: threading.Thread

    def is_alive(self) -> bool:
        """Return whether it still serves."""
        return self.thread.is_alive()


@contextlib.contextmanager
def serving(app: object, port: int | None) -> Iterator[Served]:
    """Serve an app on the loopback address during the block.

    Raises:
        SpecError: the port cannot be used.
    """
    import uvicorn

    listening = _listen(port)
    number = listening.getsockname()[1]
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=int(STOP_S),
    )
    # Each request that does not come to its end is a line of uvicorn's.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="browse-server", daemon=True)
    thread.start()
    try:
        yield Served(f"http://{HOST}:{number}", thread)
    finally:
        server.should_exit = True
        thread.join(STOP_S + 1)
        listening.close()


def _listen(port: int | None) -> socket.socket:
    """Return a socket that listens, so that the address is known, and taken, before anything is printed."""
    wanted = DEFAULT_PORT if port is None else port
    for candidate in (wanted, 0) if port is None else (wanted,):
        # With its protocol named: for others asyncio leaves Nagle's algorithm on, and each answer waits 40 ms.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((HOST, candidate))
            listening.listen(128)
        except (OSError, OverflowError) as error:
            listening.close()
            reason = getattr(error, "strerror", None) or str(error)
            failure = SpecError(f"--port {candidate} cannot be used: {reason}; name another, or 0 for a free one.")
            continue
        listening.setblocking(False)
        return listening
    raise failure


def has_screen() -> bool:
    """Return whether a browser can be opened here: not in a pipe, over SSH or without a display."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in {"darwin", "win32"} or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(address: str) -> None:
    try:
        is_open = webbrowser.open(address)
    except webbrowser.Error:
        is_open = False
    if not is_open:
        say("No browser could be opened; open the address yourself.")


def _impatient(section: "StorageSection | None") -> Storage:
    from pipeline.storage.config import StorageSection

    return Storage((section or StorageSection()).model_copy(update={"patience_s": PICTURE_PATIENCE_S}))
