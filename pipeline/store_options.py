"""How the remote stores' clients are opened: endpoint, anonymity, time-outs, and no second retry loop."""

import logging
import os
from typing import Any

from pipeline.config import StorageSection
from pipeline.errors import StorageError
from pipeline.option_rules import merge_options, options_of
from pipeline.s3_pages import quicken_listings
from pipeline.uris import WEB_SCHEMES

S3_SCHEMES = frozenset({"s3", "s3a"})
GCS_SCHEMES = frozenset({"gs", "gcs"})
AZURE_SCHEMES = frozenset({"abfs", "abfss", "az", "adl"})
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
EXTRAS = {"gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure", "adl": "azure"}
"""The extra of `htc-batch` that brings a scheme's library; s3fs comes along always."""


def read_concurrency(section: StorageSection, *, is_local: bool) -> int:
    """Return how many reads may be under way at once in a process.

    Object stores answer in tens of milliseconds, and s3fs spends two of CPU on a read: thirty-two reads are as
    many as one process can serve. A disk needs fewer.
    """
    if section.read_concurrency != "auto":
        return section.read_concurrency
    return 16 if is_local else 32


def open_client(scheme: str, section: StorageSection, uri: str) -> Any:
    """Open the fsspec file system of a scheme; StorageError when nobody knows it or its library is missing."""
    import fsspec

    if scheme in GCS_SCHEMES:
        settle_gcsfs()
    try:
        client = fsspec.filesystem(scheme, use_listings_cache=False, **client_options(scheme, section))
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"pip install 'htc-batch[{extra}]'" if extra else "install the library named there"
        raise StorageError(f"{scheme}:// needs a library that is not installed ({error}); {remedy}.") from error
    except ValueError as error:
        raise StorageError(f"{uri} has an unknown scheme, {scheme}:// ({error}).") from error
    if hasattr(client, "retries"):
        # s3fs retries on top of botocore and we retry on top of s3fs: one loop with our waits is enough.
        client.retries = 1
    if scheme in S3_SCHEMES:
        quicken_listings(client)
        # s3fs takes `?versionId=` off every name, and would write `a?versionId=1` to `a`; adlfs does the same.
        client.split_path = lambda path: (*client._find_bucket_key(client._strip_protocol(path).lstrip("/")), None)
    if scheme in AZURE_SCHEMES:
        client.split_path = lambda path, **_: (*client._strip_protocol(path).lstrip("/").partition("/")[::2], None)
    return client


def settle_gcsfs() -> None:
    """Have gcsfs ask nothing more than it is asked for, and say nothing that is said here."""
    # Otherwise it asks by gRPC what kind of bucket it is, for a minute where only HTTP gets through.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # It logs a traceback of every refusal, a lost race for a lease among them.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def client_options(scheme: str, section: StorageSection) -> dict[str, Any]:
    """Return what fsspec's file system of a scheme is opened with; credentials are left to its own search.

    What the spec does not say is left out, so that fsspec's own settings (`FSSPEC_S3`, ~/.config/fsspec) hold. The
    endpoint is said only where it means something: S3 and Google Cloud Storage.
    """
    import aiohttp

    options: dict[str, Any] = {}
    if scheme in S3_SCHEMES:
        # max_concurrency=1: otherwise s3fs sends a HEAD before each GET (1.5 x slower for 200 KB objects).
        options = {
            "max_concurrency": 1,
            "config_kwargs": {
                "retries": {"total_max_attempts": 1},
                "connect_timeout": CONNECT_TIMEOUT_S,
                "read_timeout": READ_TIMEOUT_S,
                # Beside the reads: listings, writes, and reads that are asked for twice.
                "max_pool_connections": read_concurrency(section, is_local=False) + 16,
            },
        }
    if scheme in WEB_SCHEMES:
        # aiohttp would wait five minutes for a host that swallows everything.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        options = {"client_kwargs": {"timeout": timeout}}
    if scheme in AZURE_SCHEMES:
        # Left to itself, adlfs is anonymous wherever it finds no key, also where a managed identity would be found.
        options["anon"] = section.anonymous
    elif section.anonymous and scheme in S3_SCHEMES | GCS_SCHEMES:
        options |= {"token": "anon"} if scheme in GCS_SCHEMES else {"anon": True}
    if section.endpoint_url and scheme in S3_SCHEMES | GCS_SCHEMES:
        options["endpoint_url"] = section.endpoint_url
    return merge_options(options, options_of(section.options, scheme))
