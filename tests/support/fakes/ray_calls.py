"""Ray's calls as the worker pool makes them, answered without Ray: `fake_ray` of `FakeRay.install`, handles, refs."""

from collections.abc import Callable
from typing import Any

import pytest
import ray

from pipeline.messages import ShardResult, WorkerProgress, WorkerReady

Answer = Callable[[list[Any]], tuple[list[Any], list[Any]]]


class Ref:
    """An answer, or an exception to raise; a reference of its own each time, as Ray's are."""

    def __init__(self, answer: object) -> None:
        self.answer = answer


class FakeCall:
    """A remote method whose answer is known; `refs` are those of all calls."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.refs: list[Ref] = []

    def remote(self, *arguments: object, **options: object) -> Ref:
        self.refs.append(Ref(self.answer))
        return self.refs[-1]


class FakeHandle:
    """An actor that does every shard at once and then holds three GiB."""

    def __init__(self) -> None:
        self.node = FakeCall("node")
        self.progress = FakeCall(WorkerProgress())
        self.start = FakeCall(WorkerReady("cpu", 1, 0.0))
        self.run_shard = FakeCall(ShardResult(0, {"ok": 1}, 0, {}, 0, 0.0, memory_bytes=3 * 2**30))
        self.abandon = FakeCall(False)


class FakeRay:
    """What the pool calls of Ray.

    answer: splits refs into those that are answered, by default all, and the others. killed: handles.
    waited: the number of refs in each call of `wait`.
    """

    def __init__(self) -> None:
        self.answer: Answer = lambda refs: (refs, [])
        self.killed: list[object] = []
        self.waited: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeRay":
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr(ray, "kill", self.killed.append)
        return self

    def wait(self, refs: list[Any], **options: object) -> tuple[list[Any], list[Any]]:
        self.waited.append(len(refs))
        return self.answer(refs)

    def get(self, refs: Any) -> Any:
        if isinstance(refs, list):
            return [self.get(ref) for ref in refs]
        if isinstance(refs.answer, Exception):
            raise refs.answer
        return refs.answer
