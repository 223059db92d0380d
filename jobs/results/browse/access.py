"""Who may read: a token in the address, then a cookie; the Host and the Origin of a request; headers of every answer.

The server listens on the loopback address, and still other users of the machine and other pages in the same browser
can reach it. So each start has a random token. The first visit exchanges it for a cookie and removes it from the
address, where it would end up in histories and screenshots. The Host is checked, because a name of an attacker's may
resolve to 127.0.0.1 (DNS rebinding). Cookies belong to all ports: a page of another server on this machine is the
same site, and its requests carry the cookie; the browser's own header `Sec-Fetch-Site` sets them apart from ours.
"""

import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.results.browse.pages import Pages

TOKEN = "token"  # noqa: S105 - a parameter's name
# Also behind `ssh -L`, where the port is another one.
HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")
METHODS = ("GET", "HEAD", "POST")
# Everything from this server, nothing from elsewhere, nothing inline; no page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Access:
    """The secrets of one start of the server.

    token: for the printed address. cookie: what a browser holds after its first visit.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self.cookie = secrets.token_urlsafe(32)
        self._once: set[str] = set()

    def issue_once(self) -> str:
        """Return a token that works once: other users see the command line of a browser that is started."""
        token = secrets.token_urlsafe(32)
        self._once.add(token)
        return token

    def admits(self, token: str) -> bool:
        """Return whether a token is the printed one, or one that was not used yet."""
        once = next((each for each in self._once if _same(each, token)), None)
        self._once.discard(once or "")
        return once is not None or _same(self.token, token)

    def knows(self, cookie: str) -> bool:
        """Return whether a cookie is this start's."""
        return _same(self.cookie, cookie)


class Guard:
    """Answers requests that may not pass, and lets the others through to the app."""

    def __init__(self, app: ASGIApp, access: Access, pages: Pages) -> None:
        self._app = app
        self._access = access
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; WebSockets are refused."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._answer(scope)
        await (refusal or self._app)(scope, receive, _with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in METHODS:
            return self._pages.problem(HTTPStatus.METHOD_NOT_ALLOWED, "This server is read only.")
        if not is_own_host(headers.get("host", "")):
            return self._refuse("The address names another host than this machine's own.")
        if not _is_own_origin(headers, scope["method"]):
            return self._refuse("Another page asked for this.")
        if str(scope["path"]).startswith("/static/"):
            # Files of the program, which hold nothing of the output.
            return None
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in pairs if name == TOKEN]
        if tokens:
            return self._exchange(scope, tokens, [pair for pair in pairs if pair[0] != TOKEN])
        return None if self._access.knows(_cookies(headers).get(_cookie_name(headers), "")) else self._refuse()

    def _exchange(self, scope: Scope, tokens: Sequence[str], rest: Sequence[tuple[str, str]]) -> Response:
        if not self._access.admits(tokens[-1]):
            return self._refuse()
        # A path with two slashes at its beginning would lead to another host.
        path = "/" + str(scope["path"]).lstrip("/")
        answer = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, HTTPStatus.SEE_OTHER)
        answer.headers["Cache-Control"] = "no-store"
        name = _cookie_name(Headers(scope=scope))
        answer.set_cookie(name, self._access.cookie, path="/", httponly=True, samesite="strict")
        return answer

    def _refuse(self, reason: str = "") -> Response:
        return self._pages.refusal(reason)


def is_own_host(host: str) -> bool:
    """Return whether a Host header names the loopback address, with any port."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        return host in HOST_NAMES
    return name in HOST_NAMES and port.isascii() and port.isdigit()


def _is_own_origin(headers: Headers, method: str) -> bool:
    """Return whether a request comes from one of our pages, or from none, as an address that was typed."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return False
    site = headers.get("sec-fetch-site")
    if site in {None, "same-origin", "none"}:
        # Browsers send one of the two with every POST.
        return method != "POST" or origin is not None or site is not None
    # A link elsewhere may lead here: the browser shows the page, and the other page cannot read it.
    return (
        method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )


def _cookies(headers: Headers) -> Mapping[str, str]:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}


def _cookie_name(headers: Headers) -> str:
    # Of two servers on this machine, neither overwrites the other's.
    return f"htc-browse-{urlsplit('//' + headers.get('host', '')).port or 80}"


def _same(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode("utf-8", "surrogateescape"))


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
