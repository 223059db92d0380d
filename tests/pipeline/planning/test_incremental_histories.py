"""Weeks of nights drawn at random: what is done, what is current and what is deleted is what a plain account says."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageStatus
from pipeline.maintenance.needed_runs import needed_runs
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from tests.support.builders.planned_runs import FINGERPRINT, OTHER_MODEL, IncrementalRuns, counts_of, names_of

NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
STATUSES: list[ImageStatus] = ["ok", "ok", "ok", "failed", "unreadable"]
Done = tuple[str, str, ImageStatus]


@dataclass
class Account:
    """What happened to each image since it was last deleted: (version, model, status) and the run, oldest first."""

    rows: dict[str, list[tuple[Done, str]]] = field(default_factory=dict)

    def is_due(self, name: str, version: str, model: str) -> bool:
        history = self.rows.get(name, [])
        ok = [done for done, _ in history if done[2] == "ok"]
        if not history:
            return True
        if ok and ok[-1][:2] == (version, model):
            return False
        newest = history[-1][0]
        return newest[:2] != (version, model) or newest[2] == "failed"

    def current(self) -> dict[str, str]:
        found = {}
        for name, history in self.rows.items():
            runs = [run for done, run in history if done[2] == "ok"]
            if runs:
                found[name] = runs[-1]
        return found


@dataclass(frozen=True)
class Draw:
    """One night: the images' versions (None for an absent one), the model, how they fare, whether it is cut off."""

    versions: tuple[str | None, ...]
    model: str
    statuses: tuple[ImageStatus, ...]
    is_cut_off: bool


DRAWS = st.builds(
    Draw,
    st.tuples(*[st.sampled_from(["1", "1", "2", None]) for _ in NAMES]).filter(any),
    st.sampled_from(["old", "old", "old", "new"]),
    st.tuples(*[st.sampled_from(STATUSES) for _ in NAMES]),
    st.booleans(),
)


def live_through(nights: IncrementalRuns, account: Account, draw: Draw) -> None:
    """Have one night and check it."""
    for path in (nights.folder / "in").glob("*"):
        path.unlink()
    present = {name: version for name, version in zip(NAMES, draw.versions, strict=True) if version}
    for name, version in present.items():
        nights.put(name, content=version)
    fingerprint = FINGERPRINT if draw.model == "old" else OTHER_MODEL
    name = f"night-{nights.nights:03d}"
    run = nights.open(fingerprint=fingerprint, run=name, select__max_deleted_share=1.0, compute__shard_images=1)
    due = [name for name in sorted(present) if account.is_due(name, present[name], draw.model)]
    assert names_of(run) == due
    gone = [name for name in account.rows if name not in present]
    assert counts_of(run).get("deleted", 0) == len(gone)
    for image in gone:
        del account.rows[image]
    statuses = dict(zip(NAMES, draw.statuses, strict=True))
    shards = 1 if draw.is_cut_off else None
    nights.commit(run, statuses, shards=shards)
    for image in due[:shards]:
        account.rows.setdefault(image, []).append(((present[image], draw.model, statuses[image]), run.name))


@given(st.lists(DRAWS, min_size=2, max_size=5))
@settings(
    max_examples=settings.default.max_examples * 3 // 25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
def test_any_week_is_accounted_for(draws: list[Draw]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        nights, account = IncrementalRuns(Path(folder)), Account()
        for draw in draws:
            live_through(nights, account, draw)
        results = open_results(str(Path(folder, "out")))
        with open_database(results) as database:
            found = database.execute("SELECT parse_filename(uri), run FROM current").fetchall()
        assert sorted(found) == sorted(account.current().items())
        assert set(account.current().values()) <= needed_runs(results)
