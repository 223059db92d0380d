"""obstore (Rust's object_store) as an engine for S3: which promises of `Storage` it keeps, and what it would save.

Needs `pip install obstore`, which no extra of htc-batch brings. Run from the repository: `python -m
benchmarks.obstore_engine`. Prints one JSON line for each promise, asked of SeaweedFS and of a server that takes keys as
Amazon S3 does, and one for each engine's reads (SeaweedFS) and listing (a stub server). Times depend on the machine;
compare the CPU seconds of this process, which hold none of the server's.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.listing import STUB_ENVIRONMENT, serve
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.support.servers.plain_s3 import plain_s3
from tests.support.servers.s3_server import WRITER, S3Server

BUCKET = "bucket"
OBJECT_BYTES = 200_000
THREADS = 32
TREE_KEYS = ["a/1", "a-b", "a.jpg", "a/b/2", "b"]
ODD_KEYS = [
    "img//double.jpg",
    "img/./dot.jpg",
    "img/../up.jpg",
    "/leading.jpg",
    "img/new\nline.jpg",
    "img/a%2Fb#c?d.jpg",
]


def open_store(endpoint: str) -> Any:
    """Open a bucket without retries of its own, as `Storage` opens s3fs."""
    from obstore.store import S3Store

    return S3Store(BUCKET, endpoint=endpoint, client_options={"allow_http": True}, retry_config={"max_retries": 0})


def listed(store: Any, **options: Any) -> list[str]:
    """List a store's keys as they come."""
    return [each["path"] for page in store.list(**options) for each in page]


def report(promise: str, ask: Callable[[], object]) -> None:
    """Print whether a promise is kept: `ask` returns True, or what came instead."""
    from obstore.exceptions import BaseError

    try:
        found = ask()
    except (BaseError, OSError, ValueError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    print(json.dumps({"promise": promise, "kept": found is True} | ({} if found is True else {"found": found})))


def put_from_threads(store: Any, mode: Any) -> bool:
    """Return whether exactly one of eight conditional writes at once succeeds."""

    def put(number: int) -> bool:
        from obstore import exceptions

        try:
            store.put("lease", b"%d" % number, mode=mode)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(put, range(8))) == 1


def check_promises(server: S3Server) -> None:
    """Ask SeaweedFS, SeaweedFS behind a proxy that breaks answers, and a server that takes keys as S3 does."""
    store = open_store(server.endpoint_url)
    for key in TREE_KEYS:
        store.put(key, key.encode())
    in_order = sorted(TREE_KEYS, key=str.encode)
    report("a listing comes in the order of bytes", lambda: listed(store) == in_order or listed(store))
    report(
        "a listing resumes behind a key (a-b)",
        lambda: sorted(listed(store, offset="a-b")) == in_order[1:] or sorted(listed(store, offset="a-b")),
    )
    report("a file lists as itself", lambda: listed(store, prefix="b") == ["b"] or listed(store, prefix="b"))
    report("a range past the end reads as nothing", lambda: bytes(store.get_range("b", start=9, length=2)) == b"")
    report("one of many creates", lambda: put_from_threads(store, "create"))
    report("one of many replaces", lambda: put_from_threads(store, {"e_tag": store.head("lease")["e_tag"]}))
    tag = store.head("b")["e_tag"]
    report("If-Match reads", lambda: bytes(store.get("b", options={"if_match": tag}).bytes()) == b"b")
    with FaultProxy(server.port) as proxy:
        behind = open_store(proxy.endpoint_url)
        behind.put("whole", bytes(10_000))
        for kind in ("error_500", "slow_down", "request_timeout", "cut"):
            proxy.inject([Fault(kind, methods=("GET",))])
            report(f"an error has the status of the answer ({kind})", lambda: _has_status(behind))
        for kind in ("truncated", "wrong_length"):
            proxy.inject([Fault(kind, methods=("GET",))])
            report(f"a body that was cut is refused ({kind})", lambda: _is_refused(behind))
    with plain_s3({key: key.encode() for key in ODD_KEYS}) as endpoint:
        odd = open_store(endpoint)
        for key in ODD_KEYS:
            report(f"the key {key!r} reads", lambda key=key: bytes(odd.get(key).bytes()) == key.encode())
        report("a bucket with all of these keys lists", lambda: len(listed(odd)) == len(ODD_KEYS))


def _has_status(store: Any) -> object:
    from obstore.exceptions import BaseError

    try:
        store.get("whole").bytes()
    except BaseError as error:
        names = {name for name in dir(error) if not name.startswith("_")} - set(dir(Exception))
        return bool(names) or f"{type(error).__name__}, whose only content is a message"
    return "no error"


def _is_refused(store: Any) -> object:
    from obstore.exceptions import BaseError

    try:
        return f"{len(store.get('whole').bytes())} of 10000 bytes, and no error"
    except BaseError:
        return True


@contextmanager
def cpu_of(line: dict[str, Any]) -> Iterator[None]:
    """Add to `line` the seconds of the block, and the CPU seconds of this process in it."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    yield
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    line |= {"seconds": round(time.monotonic() - began, 2), "cpu_s": round(cpu_s, 2)}


def measure(engine: str, what: str, endpoint: str, count: int, sink: Any) -> None:
    """Read objects or list keys, in a process of its own."""
    storage, store = Storage(StorageSection(endpoint_url=endpoint)), open_store(endpoint)
    line: dict[str, Any] = {"engine": engine, "what": what, "count": count}
    if what == "read":
        keys = [f"in/{number % 200:03d}" for number in range(count)]
        ways: dict[str, Callable[[str], int]] = {
            "s3fs": lambda key: len(storage.fetch(f"s3://{BUCKET}/{key}").payload),
            "obstore": lambda key: len(bytes(store.get(key).bytes())),
        }
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(ways[engine], keys[:THREADS]))
            with cpu_of(line):
                assert sum(pool.map(ways[engine], keys)) == count * OBJECT_BYTES
    else:
        with cpu_of(line):
            found = (
                sum(1 for _ in storage.list(f"s3://{BUCKET}/in"))
                if engine == "s3fs"
                else sum(len(page) for page in store.list("in", chunk_size=1000))
            )
        assert found == count, found
    sink.send(line)


def main() -> None:
    """Check the promises, then measure both engines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=4000)
    parser.add_argument("--keys", type=int, default=200_000)
    chosen = parser.parse_args()
    # A forked child would share this process's event loop.
    context = multiprocessing.get_context("spawn")
    reader, sink = context.Pipe(duplex=False)
    os.environ |= WRITER.environment()
    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(Path(folder))
        server.start()
        try:
            server.make_bucket(BUCKET)
            check_promises(server)
            server.files().pipe({f"{BUCKET}/in/{number:03d}": bytes(OBJECT_BYTES) for number in range(200)})
            for engine in ("s3fs", "obstore") * 2:
                child = context.Process(target=measure, args=(engine, "read", server.endpoint_url, chosen.reads, sink))
                child.start()
                child.join()
                print(json.dumps(reader.recv()), flush=True)
        finally:
            server.kill()
    os.environ |= STUB_ENVIRONMENT
    stub = context.Process(target=serve, args=(chosen.keys, 0.0, sink), daemon=True)
    stub.start()
    endpoint = f"http://127.0.0.1:{reader.recv()}"
    try:
        for engine in ("s3fs", "obstore") * 2:
            child = context.Process(target=measure, args=(engine, "list", endpoint, chosen.keys, sink))
            child.start()
            child.join()
            print(json.dumps(reader.recv()), flush=True)
    finally:
        stub.kill()


if __name__ == "__main__":
    main()
