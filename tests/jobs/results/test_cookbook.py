"""Every query of docs/cookbook.md runs as it stands."""

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from tests.support.builders.outputs import make_output_folder

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cookbook.md"
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
# The output below has one run of images with a person and a dog each, on grass, and nothing is damaged.
WITHOUT_ROWS = {4, 6, 16, 18, 19, 24}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    output = make_output_folder(tmp_path_factory.mktemp("cookbook"), scores=(0.9, 0.8), maps=MAP_TABLES)
    with open_database(open_results(output.uri)) as connection:
        yield connection


def test_there_are_as_many_as_the_page_says() -> None:
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", PAGE.read_text(), re.MULTILINE)]
    assert numbers == list(range(1, 29))
    assert len(QUERIES) == 28


@pytest.mark.parametrize("number", range(1, 29))
def test_it_runs(database: duckdb.DuckDBPyConnection, number: int) -> None:
    rows = database.execute(QUERIES[number - 1]).fetchall()
    assert bool(rows) is (number not in WITHOUT_ROWS)
