"""An output folder in each kind of storage."""

from pathlib import Path

import pytest

from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.servers.s3_server import S3Server


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    """An output folder in each kind of storage."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        return Storage(StorageSection(endpoint_url=server.endpoint_url)), request.getfixturevalue("s3_bucket") + "/out"
    if request.param == "memory":
        return Storage(), f"memory://{tmp_path.name}"
    return Storage(), str(tmp_path / "out")
