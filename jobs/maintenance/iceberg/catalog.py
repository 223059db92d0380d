"""Opens the catalog of `htc publish`: one in a SQLite file, or one that pyiceberg's own configuration names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, make_url
from sqlalchemy.exc import OperationalError

from pipeline.errors import SpecError, StorageError
from pipeline.redaction import redact
from pipeline.storage.uris import home_path, is_local, join, scheme_of
from pipeline.text import message_of, one_line

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

    from pipeline.storage.config import StorageSection

# A SQL database can hold several catalogs by name; readers must give this one.
SQL_CATALOG_NAME = "htc"
DEFAULT_NAMESPACE = "htc"
SQLITE = "sqlite:///"
# By default pyiceberg uses pyarrow's S3 client, which supports fewer kinds of credentials than the run's client.
S3_FILES = "pyiceberg.io.fsspec.FsspecFileIO"


@dataclass(frozen=True)
class OpenCatalog:
    """A catalog and its label.

    label: its name as `pipeline.maintenance.publications` records it, which does not depend on the working folder.
    location: where the metadata of new tables goes; None leaves that to the catalog.
    """

    catalog: "Catalog"
    label: str
    location: str | None


def catalog_label(name: str) -> str:
    """Return a catalog's name in a form that does not depend on the working folder.

    For a SQLite file it is a URL, as in SQLAlchemy and pyiceberg: a percent sign in the path is written %25.

    Raises:
        SpecError: it is not the name of a catalog.
    """
    if name.startswith(SQLITE):
        path = _sqlite_path(name)
        return URL.create("sqlite", database=str(home_path(path).absolute())).render_as_string()
    if "://" in name or not name.strip():
        raise SpecError(
            f"{redact(name)!r} is not a catalog: --iceberg takes {SQLITE}/path/to/catalog.db, or a name from "
            "pyiceberg's own configuration (~/.pyiceberg.yaml, PYICEBERG_CATALOG__NAME__URI)."
        )
    return name


def open_catalog(name: str, output_uri: str, section: "StorageSection") -> OpenCatalog:
    """Open a catalog; a SQLite file that does not exist is created.

    The metadata of a SQLite catalog's tables is in OUTPUT/iceberg, beside the folders of the files that it names.

    Raises:
        SpecError: pyiceberg is not installed, or there is no such catalog.
        StorageError: it cannot be reached.
    """
    label = catalog_label(name)
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise SpecError(f"Publishing needs pyiceberg ({error}): pip install 'htc-batch[iceberg]'.") from None
    properties = _file_properties(output_uri, section)
    with translated_catalog_errors(label):
        if not label.startswith(SQLITE):
            return OpenCatalog(load_catalog(label, **properties), label, None)
        folder = _sqlite_path(label).parent
        if not folder.is_dir():
            raise SpecError(f"The catalog {label} cannot be created: the folder {folder} does not exist.")
        warehouse = join(output_uri, "iceberg")
        sql = partial(load_catalog, SQL_CATALOG_NAME, type="sql", uri=label, warehouse=warehouse, **properties)
        try:
            return OpenCatalog(sql(), label, warehouse)
        except OperationalError:
            # Another publisher was creating the file's own tables; now they exist.
            return OpenCatalog(sql(), label, warehouse)


def _sqlite_path(url: str) -> Path:
    database = make_url(url).database
    if not database or database == ":memory:":
        raise SpecError(f"{url} names no file; use {SQLITE}/path/to/catalog.db.")
    return Path(database)


@contextmanager
def translated_catalog_errors(label: str) -> Iterator[None]:
    """Translate what a catalog's library raises inside the block into one sentence.

    Raises:
        SpecError: the catalog is misspelt, not configured, or of another kind.
        StorageError: it failed, or storage did.
    """
    import requests
    import sqlalchemy.exc
    from pyiceberg import exceptions

    theirs: tuple[type[Exception], ...] = tuple(
        kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)
    )
    others = (OSError, requests.RequestException, sqlalchemy.exc.SQLAlchemyError)
    try:
        yield
    except (ValueError, ImportError) as error:
        raise SpecError(f"The catalog {label} cannot be used: {message_of(error, max_chars=300)}.") from error
    except sqlalchemy.exc.DBAPIError as error:
        raise StorageError(
            f"The catalog {label} cannot be used: {message_of(error.orig or error, max_chars=300)}."
        ) from error
    except theirs + others as error:
        raise StorageError(f"The catalog {label} cannot be used: {one_line(error, max_chars=300)}.") from error


def _file_properties(output_uri: str, section: "StorageSection") -> dict[str, str]:
    """Return how pyiceberg reaches the files: as htc does; it searches for credentials itself."""
    if is_local(output_uri) or scheme_of(output_uri) not in ("s3", "s3a"):
        return {}
    properties = {"py-io-impl": S3_FILES}
    endpoint_url = section.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint_url:
        properties["s3.endpoint"] = endpoint_url
    if section.anonymous:
        properties["s3.anonymous"] = "true"
    return properties
