"""Names of files and objects as plain text: schemes, joining, order and globs.

A local file is its absolute path without a scheme; a remote object keeps its scheme (`s3://bucket/key`).
Nothing but a `file:` URL is ever percent-decoded or encoded: `a%20b`, `a b`, `a#b` and `a?b` are four different
names, and each must read back.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import SpecError

WEB_SCHEMES = frozenset({"http", "https"})
S3_SCHEMES = frozenset({"s3", "s3a"})
GCS_SCHEMES = frozenset({"gs", "gcs"})
AZURE_SCHEMES = frozenset({"abfs", "abfss", "az", "adl"})
BUCKET_SCHEMES = S3_SCHEMES | GCS_SCHEMES | AZURE_SCHEMES
WELL_KNOWN_SCHEMES = BUCKET_SCHEMES | WEB_SCHEMES | {"memory"}
"""Stores that this program is tested with: an exception that none of their libraries is known to raise is a bug."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def home_path(path: str | Path) -> Path:
    """Replace a leading `~` by the user's home folder; other paths stay as they are.

    Raises:
        SpecError: this user has none, as in containers that run under a numeric user id.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SpecError(
            f"{path} begins with a home folder that is not known: set HOME to a folder that can be written (or "
            "HTC_CACHE for weights, HTC_HOME for schedules), or write the whole path."
        ) from None


def has_scheme(uri: str) -> bool:
    """Return whether the name starts with `word://`."""
    return _SCHEME.match(uri) is not None


def scheme_of(uri: str) -> str:
    """Return the scheme in lower case, "file" for a plain path."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else "file"


def host_of(uri: str) -> str:
    """Return the part between the scheme and the first slash, a host or a bucket; "" for a local path."""
    match = _SCHEME.match(uri)
    return uri[match.end() :].partition("/")[0] if match and not is_local(uri) else ""


def is_local(uri: str) -> bool:
    """Return whether the name is a local path (with or without `file://`)."""
    return scheme_of(uri) in ("file", "local")


def local_path(uri: str) -> str:
    """Return the path of a local name.

    A `file:` URL is decoded as RFC 8089 says: `file:///a%20b` and `file://localhost/a%20b` are `/a b`.
    """
    match = _SCHEME.match(uri)
    if match is None:
        return uri
    path = uri[match.end() :]
    if match.group(1).lower() != "file":
        return path
    if path[:10].lower() == "localhost/":
        path = path[9:]
    return unquote(path, errors="surrogateescape") if "%" in path else path


def without_query(uri: str) -> str:
    """Return a web address up to its `?` or `#`; in any other name these are ordinary characters."""
    return re.split(r"[?#]", uri, maxsplit=1)[0] if scheme_of(uri) in WEB_SCHEMES else uri


def join(uri: str, *parts: str) -> str:
    """Append path parts with single slashes; the parts are taken literally."""
    for part in parts:
        uri = f"{uri}{part}" if uri.endswith("/") else f"{uri}/{part}"
    return uri


def base_name(uri: str) -> str:
    """Return the part behind the last slash."""
    return uri.rstrip("/").rpartition("/")[2]


def folder_of(uri: str) -> str:
    """Return the uri without its last part and without a trailing slash (`/` for a root)."""
    head = without_query(uri).rstrip("/").rpartition("/")[0]
    return head or "/"


def suffix_of(uri: str) -> str:
    """Return the last extension in lower case with its dot, or "" when the name has none."""
    name = base_name(without_query(uri))
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def is_hidden_name(relative: str) -> bool:
    """Return whether a part of a name begins with a dot, other than `.` and `..`, which keys of a bucket may hold."""
    return any(part.startswith(".") and part not in (".", "..") for part in relative.split("/"))


def resolve(entry: str, folder: str) -> str:
    """Resolve a listing's entry: a URI or absolute path stays, anything else is relative to the listing's folder.

    `./` and `../` are resolved, so that one image has one name.
    """
    if has_scheme(entry):
        return local_path(entry) if is_local(entry) else entry
    if entry.startswith("/"):
        return entry
    match = _SCHEME.match(folder)
    root, path = (match.group(0), folder[match.end() :]) if match else ("/", folder.lstrip("/"))
    parts = [part for part in path.split("/") if part]
    for part in entry.split("/"):
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    return root + "/".join(parts)


def display_uri(uri: str) -> str:
    r"""Return the name as valid Unicode: bytes that are not UTF-8 (old file systems hold some) become `\xNN`."""
    if uri.isascii():
        return uri
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_order(name: str) -> bytes:
    """Return the sort key of a name, the same as on S3: the bytes of its UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a glob: `*` and `?` stop at slashes, `**/` crosses them, `[a-z]` and `[!a]` are classes.

    A bracket that is not closed matches itself.

    Raises:
        SpecError: a class has a reversed range, such as `[z-a]`.
    """
    parts = pattern.strip("/").split("/")
    pieces: list[str] = []
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if part == "**":
            pieces.append(".+" if is_last else "(?:.+/)?")
        else:
            pieces.append(_component(part) + ("" if is_last else "/"))
    try:
        return re.compile("".join(pieces), re.DOTALL)
    except re.error as error:
        raise SpecError(f"The pattern {pattern!r} is not valid: {error.msg}.") from None


def has_magic(text: str) -> bool:
    """Return whether the text holds one of `*`, `?`, `[`."""
    return any(char in text for char in "*?[")


def first_magic(parts: Iterable[str]) -> int | None:
    """Return the index of the first part with a wildcard, None when there is none."""
    return next((index for index, part in enumerate(parts) if has_magic(part)), None)


def _component(part: str) -> str:
    out, position = "", 0
    while position < len(part):
        char = part[position]
        position += 1
        is_negated = part.startswith("!", position)
        # A closing bracket that comes first is a member of the class.
        close = part.find("]", position + 1 + is_negated) if char == "[" else -1
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif close > 0:
            members = part[position + is_negated : close]
            escaped = "".join(each if each == "-" else re.escape(each) for each in members)
            out += f"[{'^/' if is_negated else ''}{escaped}]"
            position = close + 1
        else:
            out += re.escape(char)
    return out


def absolute_uri(uri: str) -> str:
    """Make a local path absolute against the current folder; a URI with a scheme stays as it is."""
    if not is_local(uri):
        return uri
    path = home_path(local_path(uri))
    # resolve() would also follow symlinks and so change the folder's name; only `..` needs it.
    return str(path.resolve() if ".." in path.parts else path.absolute())
