"""How the remote stores' clients are opened: endpoint, anonymity, time-outs, and no second retry loop."""

import inspect
import logging
import os
from typing import Any

from pipeline.errors import UnsupportedSchemeError
from pipeline.storage.config import StorageSection
from pipeline.storage.options import merge_options, options_of
from pipeline.storage.s3_page_parser import quicken_listings
from pipeline.storage.uris import AZURE_SCHEMES, GCS_SCHEMES, S3_SCHEMES, WEB_SCHEMES, WELL_KNOWN_SCHEMES
from pipeline.text import message_of, one_line

# File systems of fsspec that stand before another address.
_INSIDE_OTHERS = frozenset(
    {"zip", "tar", "jar", "libarchive", "reference", "dir", "data", "generic", "async_wrapper"}
    | {"simplecache", "filecache", "blockcache", "cached", "chained"}
)
# Of a library that could not be loaded: every place where it looked is no help.
_LONGEST_REASON = 80
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


def scheme_problem(scheme: str, section: StorageSection) -> str | None:
    """Say why addresses of a scheme cannot be opened, None when they can; no store is asked anything.

    A package that is missing is named, and so are options that the file system needs and the spec does not give.
    """
    import fsspec

    if scheme in GCS_SCHEMES:
        # Before its library is imported.
        settle_gcsfs()
    try:
        system = fsspec.get_filesystem_class(scheme)
    except ValueError:
        return f"{scheme}:// is a scheme that no store is known by"
    except (ImportError, AttributeError) as error:
        extra = EXTRAS.get(scheme)
        remedy = f"; pip install 'htc-batch[{extra}]'" if extra else ""
        return f"{scheme}:// needs a package that is not installed ({message_of(error, max_chars=300)}){remedy}"
    if scheme in _INSIDE_OTHERS:
        return f"{scheme}:// names something inside another file, which is not read; unpack it, and name the files"
    missing = _required(system) - {*options_of(section.options, scheme), *fsspec.config.conf.get(scheme, {})}
    if missing:
        names = ", ".join(sorted(missing))
        return f"{scheme}:// cannot be opened without its options {names}; set them in storage.options.{scheme}"
    return None


def _required(system: type) -> set[str]:
    """Name the parameters that a file system cannot be opened without."""
    parameters = list(inspect.signature(system.__init__).parameters.values())[1:]  # type: ignore[misc]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {each.name for each in parameters if each.default is each.empty and each.kind in kinds}


def open_client(scheme: str, section: StorageSection) -> Any:
    """Open the fsspec file system of a scheme.

    Raises:
        UnsupportedSchemeError: fsspec does not know the scheme, its package is missing, or it does not open.
    """
    import fsspec

    problem = scheme_problem(scheme, section)
    if problem is not None:
        raise UnsupportedSchemeError(f"{problem}.")
    try:
        client = fsspec.filesystem(scheme, use_listings_cache=False, **client_options(scheme, section))
    except (ImportError, ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError) as error:
        if scheme in WELL_KNOWN_SCHEMES and isinstance(error, OSError | RuntimeError):
            raise
        # Hadoop's library finds no Java, a wrapper finds nothing to wrap: whatever it is, it will be so next time.
        reason = one_line(error, max_chars=_LONGEST_REASON)
        raise UnsupportedSchemeError(f"{scheme}:// cannot be opened here ({reason}).") from error
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
