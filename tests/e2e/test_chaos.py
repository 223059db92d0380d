"""A short form of benchmarks/chaos.py, for the faults that test_poison.py and test_leftovers.py do not have.

Every round is the real command in processes of its own, against a real S3 server behind a proxy that breaks things.
"""

from collections.abc import Iterator

import pytest

from tests.chaos import faults, store_faults
from tests.chaos.arena import Arena, Place
from tests.chaos.round import Play
from tests.support.servers.s3_server import WRITER, S3Server

# A round is up to three commands, each of which starts Ray: half a minute on a free core, minutes on a busy one.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("s3")]


@pytest.fixture(scope="module")
def arena(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WRITER.environment().items():
            patch.setenv(name, value)
        yield Arena(tmp_path_factory.mktemp("chaos"), s3_server, is_short=True)


@pytest.mark.parametrize(
    ("name", "play", "place"),
    [
        ("the store fails in every way", store_faults.store_storm, "s3"),
        ("a worker dies as it writes", faults.worker_killed_at_write, "s3"),
        ("the driver dies in the middle of a commit", faults.DRIVER_DEATHS["after instances"], "s3"),
        ("the store's server dies and comes back", store_faults.store_restarted, "s3"),
    ],
    ids=["store", "worker", "driver", "restart"],
)
def test_the_tables_are_the_same_and_nothing_is_left_behind(arena: Arena, name: str, play: Play, place: Place) -> None:
    outcome = arena.play(name, play, place=place, seed=1)
    assert outcome.complaints == ()
    assert place == "local" or name != "the store fails in every way" or sum(outcome.injected.values()) > 0
