"""The emulators of Google Cloud Storage and Azure, started when the first test asks for one."""

from collections.abc import Iterator

import pytest

from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.object_servers import OpenStorage, azurite, fake_gcs
from tests.support.servers.s3_server import ServerUnavailableError


@pytest.fixture(scope="session")
def open_gcs() -> Iterator[OpenStorage]:
    """Opens a new `Storage` for the emulator of Google Cloud Storage."""
    try:
        with fake_gcs() as endpoint:
            options = {"gs": {"endpoint_url": endpoint, "project": "tests"}}
            yield lambda: Storage(StorageSection(anonymous=True, options=options))
    except ServerUnavailableError as error:
        pytest.skip(f"no Google Cloud Storage here: {error}")


@pytest.fixture(scope="session")
def open_azure() -> Iterator[OpenStorage]:
    """Opens a new `Storage` for the emulator of Azure Blob Storage."""
    try:
        with azurite() as connection, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
            yield Storage
    except ServerUnavailableError as error:
        pytest.skip(f"no Azure Blob Storage here: {error}")
