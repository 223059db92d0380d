"""The files of this folder, and what a page needs to hold them: one script, JSON that cannot end it, a policy."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources

STYLE = "style.css"
_IMPORT = re.compile(r"""^import \{[^}]*\} from "\./([\w.]+)";\n""", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) )", re.MULTILINE)
# In a script element, "</script" and "<!--" would end or change it; the two separators are line breaks to JavaScript.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def read_asset(name: str) -> bytes:
    """Read a file of this folder, such as "viewer.js".

    Raises:
        FileNotFoundError: there is none of this name, or the name is a path.
    """
    if "/" in name or "\\" in name or name.startswith("."):
        raise FileNotFoundError(name)
    return (resources.files(__package__ or "jobs.results.web") / name).read_bytes()


def style_sheet() -> str:
    """Return the style sheet."""
    return read_asset(STYLE).decode()


def joined_scripts(entry: str) -> str:
    """Return a module with all that it imports as one script, for a page in one file, which cannot import.

    Modules are joined in the order in which they need each other, without their import and export statements; so names
    at the top of modules must differ.

    Args:
        entry: the module's file name, such as "report.js".
    """
    texts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in texts:
            return
        source = read_asset(name).decode()
        for needed in _IMPORT.findall(source):
            add(needed)
        texts[name] = _EXPORT.sub("", _IMPORT.sub("", source)).strip()

    add(entry)
    return '"use strict";\n' + "\n\n".join(texts.values()) + "\n"


def script_json(value: object) -> str:
    """Return JSON that can stand inside a script element, whatever its strings hold.

    Raises:
        ValueError: a number is not finite, which JSON has no word for.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda match: _ESCAPES[match[0]], text)


def content_policy(*, scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """Return the Content-Security-Policy of a page in one file: nothing is loaded, and only its own code runs.

    Args:
        scripts, styles: the exact text of its script and style elements.
    """

    def hashes(texts: Sequence[str]) -> str:
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
