"""Opening the fsspec file system of a scheme: its options, endpoint and time-outs, without retries of its own."""

import inspect
import logging
import os
from types import MethodType
from typing import Any

from pipeline.errors import UnsupportedSchemeError
from pipeline.storage.config import StorageSection
from pipeline.storage.options import merge_options, options_of
from pipeline.storage.s3_page_parser import install_page_parser
from pipeline.storage.uris import AZURE_SCHEMES, GCS_SCHEMES, S3_SCHEMES, WEB_SCHEMES, WELL_KNOWN_SCHEMES
from pipeline.text import message_of, one_line

# File systems of fsspec that wrap another address.
_INSIDE_OTHERS = frozenset(
    {"zip", "tar", "jar", "libarchive", "reference", "dir", "data", "generic", "async_wrapper"}
    | {"simplecache", "filecache", "blockcache", "cached", "chained"}
)
# Characters of the reason that a library gives; some list every place that they searched.
_LONGEST_REASON = 80
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
EXTRAS = {"gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure", "adl": "azure"}
"""The extra of `htc-batch` that installs a scheme's library; s3fs is always installed."""


def read_concurrency(section: StorageSection, *, is_local: bool) -> int:
    """Return how many concurrent reads a process may make.

    Object stores answer in tens of milliseconds, and s3fs spends two milliseconds of CPU on a read, so that one
    process can serve thirty-two reads. A disk needs fewer.
    """
    if section.read_concurrency != "auto":
        return section.read_concurrency
    return 16 if is_local else 32


def scheme_problem(scheme: str, section: StorageSection) -> str | None:
    """Return why addresses of a scheme cannot be opened, None when they can; makes no request.

    It names a missing package, and options that the file system requires and the spec does not set.
    """
    import fsspec

    try:
        system = _class_of(scheme)
    except ValueError:
        return f"{scheme}:// is not a known scheme"
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


def _class_of(scheme: str) -> Any:
    """Return the file system's class.

    Raises:
        ValueError: fsspec does not know the scheme.
        ImportError: its package is not installed.
    """
    import fsspec

    if scheme in GCS_SCHEMES:
        configure_gcsfs()
        from gcsfs.core import GCSFileSystem

        # The class that gcsfs registers depends on its settings at its first import in this process, which may have
        # been another package's; one of them asks by gRPC for the kind of each bucket, and may wait for ever.
        return GCSFileSystem
    return fsspec.get_filesystem_class(scheme)


def _required(system: type) -> set[str]:
    """Return the names of a file system's parameters without defaults."""
    parameters = list(inspect.signature(system.__init__).parameters.values())[1:]  # type: ignore[misc]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {each.name for each in parameters if each.default is each.empty and each.kind in kinds}


def open_client(scheme: str, section: StorageSection) -> Any:
    """Open the fsspec file system of a scheme.

    Raises:
        UnsupportedSchemeError: fsspec does not know the scheme, its package is missing, or it does not open.
    """
    problem = scheme_problem(scheme, section)
    if problem is not None:
        raise UnsupportedSchemeError(f"{problem}.")
    try:
        client = _class_of(scheme)(use_listings_cache=False, **client_options(scheme, section))
    except (ImportError, ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError) as error:
        if scheme in WELL_KNOWN_SCHEMES and isinstance(error, OSError | RuntimeError):
            raise
        # Hadoop's library finds no Java, a wrapper nothing to wrap: a second attempt would fail as well.
        reason = one_line(error, max_chars=_LONGEST_REASON)
        raise UnsupportedSchemeError(f"{scheme}:// cannot be opened here ({reason}).") from error
    if hasattr(client, "retries"):
        # The retries of `pipeline.storage.retry` are the only ones.
        client.retries = 1
    if scheme in GCS_SCHEMES:
        _drop_retries_of_gcsfs(client)
    if scheme in S3_SCHEMES:
        install_page_parser(client)
        # s3fs removes `?versionId=` from every name, and would write `a?versionId=1` to `a`; adlfs does the same.
        client.split_path = lambda path: (*client._find_bucket_key(client._strip_protocol(path).lstrip("/")), None)
    if scheme in AZURE_SCHEMES:
        client.split_path = lambda path, **_: (*client._strip_protocol(path).lstrip("/").partition("/")[::2], None)
    return client


def _drop_retries_of_gcsfs(client: Any) -> None:
    # gcsfs repeats each request up to six times whatever `retries` says, with 33 s of waits of its own: a store that
    # does not answer would cost six minutes before the first retry that is logged here and bounded by `patience_s`.
    request = getattr(type(client)._request, "__wrapped__", None)
    if request is not None:
        client._request = MethodType(request, client)


def configure_gcsfs() -> None:
    """Keep gcsfs from making requests of its own and from logging errors that are reported here."""
    # Otherwise it asks by gRPC for the kind of the bucket, which takes a minute where a proxy passes HTTP only.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # It logs a traceback for every refusal, such as a conditional write that another process won.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def client_options(scheme: str, section: StorageSection) -> dict[str, Any]:
    """Return the options of a scheme's fsspec file system; credentials are left to its own search.

    What the spec does not set is left out, so that fsspec's own settings (`FSSPEC_S3`, ~/.config/fsspec) apply. Only S3
    and Google Cloud Storage take the endpoint.
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
                # In addition to the reads: listings, writes, and hedged reads.
                "max_pool_connections": read_concurrency(section, is_local=False) + 16,
            },
        }
    if scheme in WEB_SCHEMES | GCS_SCHEMES:
        # By default aiohttp waits five minutes for an answer, and gcsfs for ever.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        options = {"client_kwargs": {"timeout": timeout}} if scheme in WEB_SCHEMES else {"requests_timeout": timeout}
    if scheme in AZURE_SCHEMES:
        # By default adlfs is anonymous where it finds no key, even where a managed identity is available.
        options["anon"] = section.anonymous
    elif section.anonymous and scheme in S3_SCHEMES | GCS_SCHEMES:
        options |= {"token": "anon"} if scheme in GCS_SCHEMES else {"anon": True}
    if section.endpoint_url and scheme in S3_SCHEMES | GCS_SCHEMES:
        options["endpoint_url"] = section.endpoint_url
    return merge_options(options, options_of(section.options, scheme))
