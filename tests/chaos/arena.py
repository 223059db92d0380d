"""The arena: inputs and reference runs made once, then a round in its own scene for each fault."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from tests.chaos.checks import Tables, complaints_of, read_tables
from tests.chaos.input import Store, bucket_store, images, local_store
from tests.chaos.round import SLOW, Play, Round
from tests.chaos.scene import HungError, Scene
from tests.support.servers.fault_proxy import FaultProxy
from tests.support.servers.s3_server import WRITER, S3Server

Place = Literal["local", "s3"]


@dataclass(frozen=True)
class Outcome:
    """How a round went.

    complaints: what was wrong; empty when the fault was survived.
    exit_codes: of the round's commands. injected: requests that met a fault at the proxy, by kind.
    """

    fault: str
    place: Place
    seed: int
    complaints: tuple[str, ...]
    exit_codes: tuple[int, ...]
    seconds: float
    injected: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**asdict(self), "is_survived": self.is_survived}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Outcome":
        """Read the values of `to_dict`."""
        known = {name: values[name] for name in Outcome.__dataclass_fields__}
        return Outcome(**known | {name: tuple(known[name]) for name in ("complaints", "exit_codes")})

    @property
    def is_survived(self) -> bool:
        """Whether there is no complaint."""
        return not self.complaints


class Arena:
    """Local files, and an S3 server behind a proxy: the same images, and so the same reference for both."""

    def __init__(self, folder: Path, server: S3Server | None, *, is_short: bool = False) -> None:
        self._folder = folder
        self._server = server
        self._is_short = is_short
        self._reference: tuple[Tables, float] | None = None
        self._rounds = 0
        self._bucket = server.make_bucket("htc-chaos") if server else ""

    def reference(self, place: Place) -> tuple[Tables, float]:
        """Return the tables of a run without faults and its seconds; made once, at the first place that is requested.

        Raises:
            HungError: the run did not end, or its tables are inconsistent.
        """
        if self._reference is None:
            with self._scene(place, "reference") as (scene, _):
                start = time.monotonic()
                scene.run(SLOW)
                tables, complaints = read_tables(scene, self._server_url(place))
                if tables.images.keys() != {name for name, _ in images()}:
                    # Empty tables equal empty tables: that would prove nothing.
                    complaints.append(f"{len(tables.images)} rows")
                if scene.exit_codes != [0] or complaints:
                    raise HungError(f"the reference run failed: {complaints}\n{scene.log}")
                self._reference = (tables, time.monotonic() - start)
        return self._reference

    def play(self, name: str, play: Play, *, place: Place, seed: int) -> Outcome:
        """Run one round of a fault and judge it."""
        reference, run_s = self.reference(place)
        with self._scene(place, f"{name}-{seed}") as (scene, store), self._proxied(scene) as proxy:
            it = Round(scene, store, proxy, self._server, Random(f"{name} {seed}"), self._is_short, run_s)
            start = time.monotonic()
            try:
                expected = play(it)
                complaints = complaints_of(scene, self._server_url(place), reference, expected)
                if expected.is_met and proxy is not None and not proxy.counts:
                    complaints.append("no request met the fault")
            except HungError as hung:
                complaints = [str(hung)]
            seconds = time.monotonic() - start
            injected = dict(proxy.counts) if proxy else {}
            if complaints:
                (scene.folder / "complaints").write_text("\n".join([*complaints, str(injected)]))
        return Outcome(name, place, seed, tuple(complaints), tuple(scene.exit_codes), round(seconds, 1), injected)

    @contextmanager
    def _scene(self, place: Place, title: str) -> Iterator[tuple[Scene, Store]]:
        """Yield a scene with the complete input; afterwards its processes are ended, and its log stays."""
        self._rounds += 1
        folder = self._folder / f"{self._rounds:03d}-{title}"
        if place == "local":
            store, output = local_store(self._folder / "in"), str(folder / "out")
        else:
            store, output = self._remote_input(), f"{self._bucket}/out-{self._rounds:03d}"
        store.fill()
        scene = Scene(folder, store.input_uri, output, self._server_url(place), WRITER.environment())
        try:
            yield scene, store
        finally:
            scene.clear()

    @contextmanager
    def _proxied(self, scene: Scene) -> Iterator[FaultProxy | None]:
        if self._server is None or not scene.endpoint_url:
            yield None
            return
        with FaultProxy(self._server.port) as proxy:
            scene.endpoint_url = proxy.endpoint_url
            yield proxy

    def _remote_input(self) -> Store:
        if self._server is None:
            raise HungError("there is no S3 server here")
        return bucket_store(self._server.files(), f"{self._bucket}/in")

    def _server_url(self, place: Place) -> str:
        return self._server.endpoint_url if self._server and place == "s3" else ""
