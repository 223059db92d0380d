"""select.where: SQL over the tables of earlier runs that returns which images to do again."""

from functools import partial

import duckdb
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SpecError
from pipeline.output.results import Results
from pipeline.output.views import query_views


def select_image_ids(results: Results, where: str) -> NDArray[np.int64]:
    """Run the SQL and return the ids of the images that it returns, [N] int64 ascending.

    Args:
        where: a SELECT statement with a column `image_id` or, without that, `uri`; it can read the views of `htc query`
            and nothing else.

    Raises:
        SpecError: the SQL is wrong, not permitted, or returns neither column.
        DamagedFileError: a part of an earlier run is damaged or missing.
    """
    try:
        return query_views(results, partial(_pick, where=where))
    except SpecError as error:
        reason = str(error).removesuffix(" (--allow-external permits it).").removesuffix(".")
        raise SpecError(f"select.where cannot be used: {reason}.") from None


def _pick(database: duckdb.DuckDBPyConnection, where: str) -> NDArray[np.int64]:
    statements = database.extract_statements(where)
    if [each.type for each in statements] != [duckdb.StatementType.SELECT]:
        raise SpecError("it must be one SELECT statement")
    database.execute(f"CREATE VIEW htc_picked AS {where}")
    picked = database.sql("FROM htc_picked")
    names = [name.lower() for name in picked.columns]
    if "image_id" in names:
        numbers = picked.select("image_id::BIGINT AS image_id")
    elif "uri" in names:
        # Joined by uri: the id of a name that is not valid Unicode is a hash of its bytes, not of the uri shown.
        numbers = database.sql("SELECT image_id FROM images WHERE uri IN (SELECT uri FROM htc_picked)")
    else:
        raise SpecError(f"it must return a column image_id or uri, and returns {', '.join(picked.columns)}")
    answer = numbers.filter("image_id IS NOT NULL").distinct().order("image_id")
    found = [np.asarray(batch.column(0), np.int64) for batch in answer.to_arrow_reader()]
    return np.concatenate([np.empty(0, np.int64), *found])
