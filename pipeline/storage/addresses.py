"""Addresses of images in listings and specs: the public name, the signed address, and what is wrong with it.

An image's name is what the tables, the records and the screen show, and what its `image_id` is computed from. A signed
URL is therefore two things: the name, without the parameters that sign it, and the address, which only storage knows
(`signed_urls`). The signature differs each time a listing is signed; the name does not.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pipeline.redaction import is_secret_parameter, redact
from pipeline.storage.uris import (
    AZURE_SCHEMES,
    BUCKET_SCHEMES,
    WEB_SCHEMES,
    has_scheme,
    is_local,
    local_path,
    resolve,
    scheme_of,
)

LONGEST_ADDRESS = 16_384
"""Characters. Linux allows paths of 4,096 bytes, S3 keys of 1,024, and web servers URLs of 8 to 16 KiB."""

# In these the part before the @ is the container.
_CONTAINER_SCHEMES = AZURE_SCHEMES | {"wasb", "wasbs"}
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]")
_ONE_SLASH = re.compile(r"file:/(?!/)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x20\x7f]")

# Parameters that belong to a signature and hold no secret themselves; they change when a URL is signed again.
# Azure: "Create a service SAS" and "Create a user delegation SAS" in Microsoft's REST reference.
_AZURE_SIGNING = frozenset(
    {"sv", "ss", "srt", "sr", "sp", "se", "st", "spr", "sip", "si", "skoid", "sktid", "skt", "ske", "sks", "skv"}
    | {"sdd", "saoid", "suoid", "scid", "ses", "sduoid", "skdutid"}
)
_SIGNING = frozenset({"expires", "expiry", "expiration", "exp", "x_expires", "hash_algorithm", "x_id"})


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an image.

    name: the image's name, without secrets; its `uri` in the tables.
    signed: the URL with its signature, which requests use; None when the name needs none.
    is_same_object: whether two addresses of this name that differ only in their secrets are certainly one object.
    problem: why it cannot be read, None when it can.
    """

    name: str
    signed: str | None = None
    is_same_object: bool = True
    problem: str | None = None


def read_address(entry: str, folder: str) -> Address:
    """Parse an entry of a listing in `folder`: an address, an absolute path, or a relative one."""
    if len(entry) > LONGEST_ADDRESS:
        return _refused(entry, f"an address of {len(entry)} characters; the longest allowed has {LONGEST_ADDRESS}")
    if _ONE_SLASH.match(entry):
        entry = f"file://{entry[5:]}"
    problem = address_problem(entry)
    if problem is not None:
        return _refused(entry if has_scheme(entry) or "\0" not in entry else resolve(entry, folder), problem)
    if not has_scheme(entry):
        return Address(resolve(entry, folder))
    scheme, _, rest = entry.partition("://")
    uri = resolve(f"{scheme.lower()}://{rest}", folder)
    if scheme_of(uri) not in WEB_SCHEMES:
        is_object = scheme_of(uri) not in BUCKET_SCHEMES or rest.rstrip("/").count("/")
        return Address(uri) if is_object else _refused(uri, "it names a bucket, and no object in it")
    name, is_same_object = public_name(uri)
    return Address(name, None if name == uri else uri, is_same_object)


def _refused(entry: str, problem: str) -> Address:
    return Address(redact(entry), problem=problem)


def address_problem(uri: str) -> str | None:
    """Return what is wrong with an address or a path; None when nothing is."""
    if "\0" in uri:
        return "it holds a null character, which no name can"
    if not has_scheme(uri):
        return _path_problem(uri)
    if is_local(uri):
        return _file_problem(uri)
    return credential_in(uri) or (_web_problem if scheme_of(uri) in WEB_SCHEMES else _store_problem)(uri)


def _path_problem(path: str) -> str | None:
    if path[:5].lower() == "data:":
        return "a data: URI holds the image itself; write the image into a file and name that"
    if _WINDOWS_PATH.match(path):
        return "a path with a drive letter, of Windows; name the file as this machine does"
    return None


def _file_problem(uri: str) -> str | None:
    rest = uri.partition("://")[2]
    host = rest.partition("/")[0]
    if scheme_of(uri) == "file" and host and host.lower() != "localhost":
        return f"a file: URL of the machine {host}; a file of this one is file:///PATH"
    return "it holds a null character, which no name can" if "\0" in local_path(uri) else None


def _store_problem(uri: str) -> str | None:
    scheme = scheme_of(uri)
    if scheme in BUCKET_SCHEMES and not uri.partition("://")[2].partition("/")[0]:
        return f"it names no bucket; write {scheme}://BUCKET/NAME"
    secrets = secrets_in(uri)
    if not secrets:
        return None
    return f"it holds {secrets[0]}, which works on https:// only; name the object without it, or by its URL"


def _web_problem(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"not a valid URL ({error})"
    # urlsplit removes line breaks and tabs.
    netloc = uri.partition("://")[2].partition("/")[0]
    if not host or _CONTROL.search(netloc):
        return "not a valid URL (it names no host)" if not host else "not a valid URL (a space or control character)"
    return "not a valid URL (it holds a control character)" if re.search(r"[\x00-\x1f\x7f]", uri) else None


def credential_in(uri: str) -> str | None:
    """Return the problem of an address with a user name, password or token before its host; None without one."""
    scheme = scheme_of(uri)
    rest = uri.partition("://")[2] if has_scheme(uri) and not is_local(uri) else ""
    user, at, _ = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    if not at or (scheme in _CONTAINER_SCHEMES and ":" not in user):
        # abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH is how Azure writes it.
        return None
    return "it holds a user name, password or token before the host; credentials come from the environment or a profile"


def secrets_in(uri: str) -> list[str]:
    """Return the names of the query parameters that hold a signature or a token, in their order."""
    if not has_scheme(uri) or is_local(uri):
        return []
    return [name for name, _ in _parameters(uri) if is_secret_parameter(name)]


def public_name(uri: str) -> tuple[str, bool]:
    """Return a web address without its signature, and whether the rest of it identifies one object.

    Parameters that select an object or version stay: `?id=7`, `?versionId=...`. A store's signature belongs to one
    object; a `token=` may be the only difference between two images of one path.
    """
    head, mark, fragment = uri.partition("#")
    if mark and any(is_secret_parameter(unquote(name)) for name in re.findall(r"([^=&#]+)=", fragment)):
        mark, fragment = "", ""
    path, question, query = head.partition("?")
    pairs = [(unquote(each.partition("=")[0]), each) for each in query.split("&")] if question else []
    secret = [name for name, _ in pairs if is_secret_parameter(name)]
    if not secret:
        return f"{head}{mark}{fragment}", True
    names = {name.lower().replace("-", "_") for name in secret}
    is_azure = "sig" in names
    kept = [text for name, text in pairs if not _is_signing(name, is_azure=is_azure)]
    is_store = is_azure or any("signature" in name for name in names)
    return f"{path}{'?' if kept else ''}{'&'.join(kept)}{mark}{fragment}", is_store


def _is_signing(name: str, *, is_azure: bool) -> bool:
    plain = name.lower().replace("-", "_")
    return (
        is_secret_parameter(name)
        or plain.startswith(("x_amz_", "x_goog_"))
        or plain in _SIGNING
        or (is_azure and plain in _AZURE_SIGNING)
    )


def _parameters(uri: str) -> list[tuple[str, str]]:
    tail = re.split(r"[?#]", uri, maxsplit=1)[1:]
    pairs = [each.partition("=") for each in re.split(r"[&#?]", tail[0])] if tail else []
    return [(unquote(name), value) for name, mark, value in pairs if mark]
