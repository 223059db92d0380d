"""Measures the driver alone: shards completed per CPU second, memory, and what a tick costs with 10,000 workers.

The session, shard queue, dispatcher, worker pool, run totals and manifest reader are those of a run. Below
`ActorHandle.remote` stands a stub: it serialises arguments as Ray does (cloudpickle), keeps them until the call is
answered, as Ray does, and answers at once; `ray.get` deserialises real bytes. What the stub does in a worker's place is
not counted. Ray's own share is therefore missing: sending, receiving, and waiting for so many refs (printed); `--ray`
adds a session over a few real actors that do no work, in which it is counted.

`throughput`: 500 shards end in each tick of a quarter of a second. The ticks: `steady`, every worker is busy and
nothing ends; `tail`, half of the workers are idle and the others have the last shards; `outage`, two shards for each
worker wait for their next attempt. Each is measured in a process of its own; one JSON line each, and a last one with
the results.
"""

import argparse
import json
import multiprocessing
import pickle
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, repeat
from typing import Any

import pyarrow as pa

from pipeline.inputs.image_ref import ImageRef
from pipeline.output.parts import CommittedShards

TICK_S = 0.25
SHARD_IMAGES = 256
ENDS_PER_TICK = 500
PART_IMAGES = 65_536
SITUATIONS = ("steady", "tail", "outage")
# A tick of an earlier version takes nine seconds in some of these situations.
MAX_SITUATION_S = 25.0
NEVER = 10**12
RAY_PROCESSES = 3


class Ref:
    """The future answer of a call; `sent` are the bytes of its arguments, which Ray keeps until then."""

    __slots__ = ("answer", "sent")

    def __init__(self, sent: bytes, answer: bytes | None) -> None:
        self.sent = sent
        self.answer = answer


class Method:
    """`handle.NAME.remote`."""

    def __init__(self, cluster: "StubCluster", name: str) -> None:
        self._cluster = cluster
        self._name = name

    def remote(self, *arguments: Any, **options: Any) -> Ref:
        """Serialise the arguments and send them nowhere."""
        return self._cluster.call(self._name, arguments, options)


class Handle:
    """An actor's handle."""

    def __init__(self, cluster: "StubCluster") -> None:
        self.node = Method(cluster, "node")
        self.start = Method(cluster, "start")
        self.progress = Method(cluster, "progress")
        self.run_shard = Method(cluster, "run_shard")
        self.abandon = Method(cluster, "abandon")


class StubCluster:
    """What the pool uses of Ray.

    ends: shards below this index end, the others never do. fails: whether attempts end with a failure. calls: by name.
    waits: calls of `wait`; waited: their refs. workers_s: CPU seconds of the stub in the workers' place.
    """

    def __init__(self, *, ends: int, fails: bool = False) -> None:
        from pipeline.messages import ShardFailure, ShardResult, WorkerProgress, WorkerReady, WorkerReport

        self.ends = ends
        self.fails = fails
        self.calls: dict[str, int] = dict.fromkeys(("node", "start", "progress", "run_shard", "abandon"), 0)
        self.waited = self.waits = 0
        self.workers_s = 0.0
        self.sent_bytes = 0
        self._result, self._failure = ShardResult, ShardFailure
        self.report = WorkerReport((12.3, 3.4, 0.5, 0.1, 412.3, 0.2, 1.4, 0.6, 0.0), "infer", 0.4, 4096, 4000, 4096)
        self._fixed = {
            "node": pickle.dumps("node"),
            "start": pickle.dumps(WorkerReady("cpu", 8, 1.0)),
            "progress": pickle.dumps(WorkerProgress({}, worker=self.report)),
            "abandon": pickle.dumps(False),
        }
        self._running: deque[tuple[Ref, int]] = deque()

    def call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Ref:
        from ray import cloudpickle

        sent = b"".join(cloudpickle.dumps(each) for each in (*arguments, *options.values()))
        self.calls[name] += 1
        if name != "run_shard":
            return Ref(sent, self._fixed[name])
        self.sent_bytes += len(sent)
        ref = Ref(sent, None)
        index = arguments[1].index
        if index < self.ends:
            self._running.append((ref, index))
        return ref

    def wait(self, refs: list[Ref], **options: Any) -> tuple[list[Ref], list[Ref]]:
        self.waits += 1
        self.waited += len(refs)
        if options["num_returns"] == 1 and len(refs) > 1:
            return refs[:1], refs[1:]
        return [ref for ref in refs if ref.answer is not None], []

    def end_some(self, most: int) -> int:
        """Answer the oldest attempts, as many workers would have done meanwhile; return how many."""
        begun = time.process_time()
        some = min(most, len(self._running))
        for _ in range(some):
            ref, index = self._running.popleft()
            ref.answer = pickle.dumps(self.outcome(index))
            ref.sent = b""
        self.workers_s += time.process_time() - begun
        return some

    def outcome(self, index: int) -> Any:
        """Return the result of an attempt."""
        if self.fails:
            return self._failure(index, "storage", "the store does not answer")
        seconds = {"read": 3.1, "decode": 5.2, "wait": 0.3, "infer": 40.1, "encode": 2.2, "write": 0.1}
        done = {"ok": SHARD_IMAGES}
        return self._result(index, done, 2000, seconds, 40_000_000, 51.0, memory_bytes=2**31, worker=self.report)

    @staticmethod
    def get(refs: Any) -> Any:
        if isinstance(refs, list):
            return [pickle.loads(ref.answer) for ref in refs]
        return pickle.loads(refs.answer)


class IdleWorker:
    """An actor's class that does no work, for the measurement with a real Ray."""

    def __init__(self) -> None:
        self._stub = StubCluster(ends=NEVER)

    def node(self) -> str:
        """Answer as a worker whose process runs."""
        return "node"

    def start(self) -> Any:
        """Answer as a worker that has loaded its model."""
        return pickle.loads(self._stub.call("start", (), {}).answer or b"")

    def progress(self) -> Any:
        """Answer that nothing is in flight."""
        return pickle.loads(self._stub.call("progress", (), {}).answer or b"")

    def run_shard(self, shard: Any, assignment: Any) -> Any:
        """Answer as a worker that has committed the shard."""
        return self._stub.outcome(assignment.index)

    def abandon(self, index: int, *, is_queued: bool = False) -> bool:
        """Answer that the commit has begun."""
        return False


@contextmanager
def real_actors() -> Iterator[Iterator[Any]]:
    """Start Ray with a few actors, and yield their handles again and again."""
    import ray
    from ray import cloudpickle

    # The actors' processes cannot import a script.
    cloudpickle.register_pickle_by_value(sys.modules[IdleWorker.__module__])  # type: ignore[no-untyped-call]
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        actor: Any = ray.remote(IdleWorker).options(num_cpus=0, max_concurrency=5)
        handles = [actor.remote() for _ in range(RAY_PROCESSES)]
        ray.get([handle.start.remote() for handle in handles])
        # Many workers share an actor: killing one of them must not end the others.
        ray.kill = lambda handle: None
        yield cycle(handles)
    finally:
        ray.shutdown()


class Clock:
    """Seconds that pass only between ticks."""

    now = 1e6

    def __call__(self) -> float:
        return self.now


class Ticks:
    """A display: the session updates it once a tick.

    from_tick: the first one that is measured. cpu_s: of each measured tick, without the stub's share. tick_s: between
    two ticks. shard_s: further seconds that pass before shards end.
    """

    def __init__(self, cluster: StubCluster, clock: Clock, stop: Any, *, from_tick: int, most: int) -> None:
        self._cluster, self._clock, self._stop = cluster, clock, stop
        self._from, self._most = from_tick, most
        self._tick = 0
        self._begun = 0.0
        self._deadline = 0.0
        self.ends_per_tick = ENDS_PER_TICK
        self.tick_s = TICK_S
        self.shard_s = 0.0
        self.cpu_s: list[float] = []
        self.before: dict[str, int] = {}
        self.images_done = 0

    def note(self, sentence: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""

    def update(self, progress: Any) -> None:
        """Note the tick's CPU seconds, and let the workers and the clock proceed."""
        now = time.process_time()
        self.images_done = progress.images_done
        if self._tick > self._from:
            self.cpu_s.append(now - self._begun)
        if self._tick == self._from:
            self.before = self._counts()
            self._deadline = time.perf_counter() + MAX_SITUATION_S
        if self._tick > self._from and (len(self.cpu_s) >= self._most or time.perf_counter() > self._deadline):
            self._stop.signal_name = "SIGTERM"
        self._tick += 1
        self._clock.now += self.tick_s
        if self._cluster.end_some(self.ends_per_tick):
            self._clock.now += self.shard_s
        self._begun = time.process_time()

    def per_tick(self) -> dict[str, float]:
        """Return the questions and waited refs per measured tick."""
        return {name: round((now - self.before[name]) / len(self.cpu_s), 1) for name, now in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        return {
            "questions": self._cluster.calls["progress"],
            "waits": self._cluster.waits,
            "refs": self._cluster.waited,
        }


def manifest_part() -> Any:
    """Return a full part of a manifest of S3 names of usual length, encoded."""
    from hashlib import md5

    from pipeline.planning.manifest import Manifest, encode_manifest_part

    names = [f"s3://photos/in/{at // 1650:02d}/photo-2026-11-23-{at:012d}.jpg" for at in range(PART_IMAGES)]
    refs = [ImageRef(name, 400_000 + at, md5(name.encode()).hexdigest()) for at, name in enumerate(names)]
    plan = Manifest(PART_IMAGES, PART_IMAGES // SHARD_IMAGES, SHARD_IMAGES, PART_IMAGES // SHARD_IMAGES, 0, 0)
    return encode_manifest_part(refs, 0, plan)


@contextmanager
def one_part_for_all() -> Iterator[None]:
    """Have every part of the manifest decoded from the same bytes, with its own shard numbers."""
    import io

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from pipeline.planning import manifest

    encoded = manifest_part()

    def read(storage: Any, uri: str) -> pa.Table:
        number = int(uri.rsplit("-", 1)[1].removesuffix(".parquet"))
        table = pq.ParquetFile(io.BytesIO(encoded), page_checksum_verification=True).read()
        at = table.schema.get_field_index("shard")
        first = pa.scalar(number * (PART_IMAGES // SHARD_IMAGES), pa.int32())
        return table.set_column(at, table.schema.field(at), pc.add(table.column(at), first))

    former, manifest.read_manifest_part = manifest.read_manifest_part, read
    try:
        yield
    finally:
        manifest.read_manifest_part = former


def measure(situation: str, workers: int, shards: int, ticks: int, sink: Any) -> None:
    """Run a session in this process and send its numbers."""
    with tempfile.TemporaryDirectory() as folder, one_part_for_all():
        if situation == "ray":
            with real_actors() as handles:
                sink.send(run_session(situation, workers, shards, ticks=ticks, folder=folder, handles=handles))
        else:
            sink.send(run_session(situation, workers, shards, ticks=ticks, folder=folder, handles=None))


def run_session(
    situation: str, workers: int, shards: int, *, ticks: int, folder: str, handles: Iterator[Any] | None
) -> dict[str, Any]:
    """Return the numbers of one session; `handles`: of real actors, None for the stub."""
    import ray

    import pipeline.driver.session as session_module
    from pipeline.driver import worker_pool
    from pipeline.driver.run_job import worker_settings
    from pipeline.driver.shard_queue import ShardQueue
    from pipeline.job_spec.job import JobSpec
    from pipeline.planning.manifest import Manifest
    from pipeline.planning.worker_plan import WorkerPlan
    from pipeline.runs.run import RunHandle
    from pipeline.signals import StopRequest
    from pipeline.storage.storage import Storage

    part_shards = PART_IMAGES // SHARD_IMAGES
    plan = Manifest(shards * SHARD_IMAGES, shards, SHARD_IMAGES, part_shards, 0, 0)
    storage, clock, stop = Storage(), Clock(), StopRequest()
    cluster = StubCluster(ends={"steady": 0, "tail": workers}.get(situation, NEVER), fails=situation == "outage")
    if handles is None:
        ray.wait, ray.get, ray.kill = cluster.wait, cluster.get, lambda handle: None
        worker_pool.time.sleep = lambda seconds: None
        handles = map(Handle, repeat(cluster))
    spec = JobSpec.model_validate(
        {
            "input": {"uri": "s3://photos/in/"},
            "output": {"uri": folder},
            "model": {"preset": "htc_lite0_fpn", "weights": "untrained"},
            "retry": {"max_attempts": 100},
        }
    )
    display = Ticks(cluster, clock, stop, from_tick=4 if situation in SITUATIONS else NEVER, most=ticks)
    if situation == "outage":
        # All fail before the first measured tick, and none is due in the ones after it.
        display.ends_per_tick, display.tick_s = NEVER, 0.0
    if situation == "tail":
        # Every worker has a shard; the first ones end together after a while, and the others are not late.
        display.ends_per_tick, display.shard_s = NEVER, 1000.0

    @contextmanager
    def open_pool(settings: Any, **options: Any) -> Iterator[Any]:
        yield worker_pool.WorkerPool(
            settings,
            WorkerPlan(workers, 1.0, 0.0),
            compute=options["compute"],
            retry=options["retry"],
            start_actor=lambda settings: next(handles),
            clock=time.monotonic if situation == "ray" else clock,
        )

    if situation != "ray":
        session_module.ShardQueue = partial(ShardQueue, clock=clock)  # type: ignore[misc]
    run = RunHandle(storage, folder, "scale", plan, is_new=True, done=CommittedShards())
    session = session_module.Session(
        run,
        storage,
        display,  # type: ignore[arg-type]
        worker=worker_settings(spec, "scale"),
        compute=spec.compute,
        retry=spec.retry,
        is_trained=False,
        stop=stop,
        open_pool=open_pool,
    )
    base_mib, begun = peak_mib(), time.process_time()
    session.work()
    cpu_s = time.process_time() - begun - cluster.workers_s
    numbers: dict[str, Any] = {"benchmark": "scale", "situation": situation, "workers": workers, "shards": shards}
    if situation == "ray":
        numbers |= {"with_ray_shards_per_cpu_s": round(shards / cpu_s), "cpu_s": round(cpu_s, 1)}
    elif situation == "throughput":
        if display.images_done != shards * SHARD_IMAGES:
            raise SystemExit(f"{display.images_done} images of {shards * SHARD_IMAGES} are done")
        numbers |= {"shards_per_cpu_s": round(shards / cpu_s), "cpu_s": round(cpu_s, 1)}
        numbers |= {"kib_per_shard": round(cluster.sent_bytes / cluster.calls["run_shard"] / 1024, 1)}
        numbers |= {"questions": cluster.calls["progress"]}
    else:
        ordered = sorted(display.cpu_s)
        numbers |= {"ticks": len(ordered), "ms_per_tick": round(1000 * sum(ordered) / len(ordered), 2)}
        numbers |= {"median_ms": round(1000 * ordered[len(ordered) // 2], 2), "max_ms": round(1000 * ordered[-1], 2)}
        numbers |= {f"{name}_per_tick": value for name, value in display.per_tick().items()}
    return numbers | {"peak_mib": round(peak_mib()), "peak_before_mib": round(base_mib)}


def peak_mib() -> float:
    """Return the process's peak resident memory so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_process(situation: str, workers: int, shards: int, ticks: int) -> dict[str, Any]:
    """Measure in a process of its own, which begins with no other's memory, and print the line."""
    context = multiprocessing.get_context("spawn")
    reader, sink = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(situation, workers, shards, ticks, sink))
    child.start()
    while not reader.poll(1.0):
        if child.exitcode is not None:
            sys.exit(child.exitcode or 1)
    numbers: dict[str, Any] = reader.recv()
    child.join()
    print(json.dumps(numbers), flush=True)
    return numbers


def main() -> None:
    """Measure one size after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a minute: 1,000 workers at most, 5,000 shards")
    parser.add_argument("--workers", type=int, nargs="+", help="default: 100, 1,000 and 10,000")
    parser.add_argument("--shards", type=int, help="of the throughput; default: 1,000,000")
    parser.add_argument("--ray", action="store_true", help="also with a real Ray, whose share is counted then")
    chosen = parser.parse_args()
    sizes = chosen.workers or ([100, 1_000] if chosen.small else [100, 1_000, 10_000])
    shards = chosen.shards or (5_000 if chosen.small else 1_000_000)
    result: dict[str, Any] = {"benchmark": "scale", "workers": sizes[-1], "shards": shards}
    for workers in sizes:
        for situation in SITUATIONS:
            # So many that every worker is asked a few times in the steady state.
            ticks = 200 if situation == "steady" else 20
            wanted = {"steady": 4 * workers, "tail": workers + workers // 2, "outage": 2 * workers}[situation]
            numbers = in_process(situation, workers, wanted, ticks)
            result[f"{situation}_{workers}_ms_per_tick"] = numbers["ms_per_tick"]
            if workers == sizes[-1]:
                result[f"{situation}_ticks_per_cpu_s"] = round(1000 / max(0.01, numbers["ms_per_tick"]), 1)
    if chosen.ray:
        name = "with_ray_shards_per_cpu_s"
        result[name] = in_process("ray", 100, 5_000 if chosen.small else 20_000, 0)[name]
    numbers = in_process("throughput", sizes[-1], shards, 0)
    result |= {name: numbers[name] for name in ("shards_per_cpu_s", "peak_mib")}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
