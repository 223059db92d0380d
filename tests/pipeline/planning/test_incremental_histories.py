"""Random series of incremental runs: what is done, current and deleted agrees with a simple model."""

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
    """The model: of each image (version, model, status) and the run since it was last deleted, oldest first."""

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
class RunCase:
    """One run: the images' versions (None for a missing one), the model, the statuses, whether it is interrupted."""

    versions: tuple[str | None, ...]
    model: str
    statuses: tuple[ImageStatus, ...]
    is_interrupted: bool


CASES = st.builds(
    RunCase,
    st.tuples(*[st.sampled_from(["1", "1", "2", None]) for _ in NAMES]).filter(any),
    st.sampled_from(["old", "old", "old", "new"]),
    st.tuples(*[st.sampled_from(STATUSES) for _ in NAMES]),
    st.booleans(),
)


def run_and_check(runs: IncrementalRuns, account: Account, case: RunCase) -> None:
    """Do one run and check it."""
    for path in (runs.folder / "in").glob("*"):
        path.unlink()
    present = {name: version for name, version in zip(NAMES, case.versions, strict=True) if version}
    for name, version in present.items():
        runs.put(name, content=version)
    fingerprint = FINGERPRINT if case.model == "old" else OTHER_MODEL
    name = f"night-{runs.days:03d}"
    run = runs.open(fingerprint=fingerprint, run=name, select__max_deleted_share=1.0, compute__shard_images=1)
    due = [name for name in sorted(present) if account.is_due(name, present[name], case.model)]
    assert names_of(run) == due
    gone = [name for name in account.rows if name not in present]
    assert counts_of(run).get("deleted", 0) == len(gone)
    for image in gone:
        del account.rows[image]
    statuses = dict(zip(NAMES, case.statuses, strict=True))
    shards = 1 if case.is_interrupted else None
    runs.commit(run, statuses, shards=shards)
    for image in due[:shards]:
        account.rows.setdefault(image, []).append(((present[image], case.model, statuses[image]), run.name))


@given(st.lists(CASES, min_size=2, max_size=5))
@settings(
    max_examples=settings.default.max_examples * 3 // 25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
def test_any_series_of_runs_agrees_with_the_model(cases: list[RunCase]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs, account = IncrementalRuns(Path(folder)), Account()
        for case in cases:
            run_and_check(runs, account, case)
        results = open_results(str(Path(folder, "out")))
        with open_database(results) as database:
            found = database.execute("SELECT parse_filename(uri), run FROM current").fetchall()
        assert sorted(found) == sorted(account.current().items())
        assert set(account.current().values()) <= needed_runs(results)
