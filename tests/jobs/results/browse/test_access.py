"""Who may read: tokens, cookies, Host, Origin, and the headers of answers."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from jobs.results.browse.access import HEADERS, Access, is_own_host
from jobs.results.browse.app import build_app
from jobs.results.browse.tables import Tables
from pipeline.storage.storage import Storage
from tests.jobs.results.browse.conftest import ADDRESS, OpenApp

PAGES = ("/", "/facets", "/image?uri=x", "/picture?uri=x", "/failures", "/compare", "/sql", "/sql/answer?sql=SELECT 1",
         "/runs", "/run", "/api/image?uri=x", "/api/step", "/api/changes", "/compare/whole", "/nothing")  # fmt: skip


def test_without_a_token_every_page_says_what_to_do_and_nothing_of_the_output(
    open_app: OpenApp, two_runs: Path
) -> None:
    client = open_app(two_runs, is_admitted=False)
    for page in PAGES:
        answer = client.get(page)
        assert answer.status_code == 403, page
        assert "htc browse" in answer.text
        assert "printed" in answer.text
        assert not {"monday", "tuesday", str(two_runs), "person"} & set(answer.text.split())
        assert str(two_runs) not in answer.text
        assert "set-cookie" not in answer.headers
    assert client.post("/refresh", headers={"Origin": ADDRESS}).status_code == 403


@pytest.mark.parametrize("token", ["wrong", "", "ü", "%00", "a" * 5000])
def test_a_wrong_token_is_refused(open_app: OpenApp, two_runs: Path, token: str) -> None:
    assert open_app(two_runs, is_admitted=False).get("/", params={"token": token}).status_code == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(two_runs: Path) -> None:
    access = Access()
    app, browser = build_app(Tables(str(two_runs), Storage()), access)
    client = TestClient(app, base_url=ADDRESS, follow_redirects=False)
    answer = client.get(f"/runs?a=1&token={access.token}&b=2")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs?a=1&b=2")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert access.token.lower() not in cookie
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/runs").status_code == 200
    # Also from another browser, as long as the program runs.
    assert TestClient(app, base_url=ADDRESS, follow_redirects=False).get(f"/?token={access.token}").status_code == 303
    browser.close()


def test_a_path_with_two_slashes_does_not_lead_to_another_host(two_runs: Path) -> None:
    access = Access()
    app, browser = build_app(Tables(str(two_runs), Storage()), access)
    answer = TestClient(app, base_url=ADDRESS, follow_redirects=False).get(
        f"{ADDRESS}//evil.example/?token={access.token}"
    )
    assert answer.headers["location"] == "/evil.example/"
    browser.close()


def test_the_token_of_a_browser_that_is_started_works_once() -> None:
    access = Access()
    once = access.issue_once()
    assert [access.admits(once), access.admits(once), access.admits(access.token), access.admits("")] == [
        *(True, False, True, False)
    ]


def test_a_cookie_of_another_start_is_refused(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    (name,) = client.cookies.keys()
    other = open_app(two_runs, is_admitted=False)
    other.cookies.set(name, client.cookies[name])
    assert other.get("/").status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8484", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0:80"),
        *("localhost:80:80", "localhost:x", "user@localhost"),
    ],
)
def test_a_name_that_resolves_to_this_machine_is_refused(open_app: OpenApp, two_runs: Path, host: str) -> None:
    client = open_app(two_runs)
    assert not is_own_host(host)
    for page in ("/", "/static/style.css", "/api/image"):
        assert client.get(page, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8484", "localhost:9000", "localhost", "[::1]:8484"])
def test_this_machine_has_three_names_with_any_port(host: str) -> None:
    assert is_own_host(host)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": ADDRESS}, 200),
        # Another server of this machine is the same site: cookies go along, and only this header names it.
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_requests_of_other_pages_are_refused(
    open_app: OpenApp, two_runs: Path, headers: dict[str, str], status: int
) -> None:
    assert open_app(two_runs).get("/runs", headers=headers).status_code == status


def test_a_post_needs_an_origin_of_its_own(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    assert client.post("/refresh").status_code == 403
    assert client.post("/refresh", headers={"Origin": "http://evil.example"}).status_code == 403
    answer = client.post("/refresh?back=/runs", headers={"Origin": ADDRESS})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example"):
        answer = client.post("/refresh", params={"back": elsewhere}, headers={"Origin": ADDRESS})
        assert answer.headers["location"] == "/"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_is_written(open_app: OpenApp, two_runs: Path, method: str) -> None:
    client = open_app(two_runs)
    assert client.request(method, "/").status_code == 405
    assert client.post("/", headers={"Origin": ADDRESS}).status_code == 405


def test_every_answer_forbids_what_comes_from_elsewhere(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    for page in ("/", "/static/browse.js", "/picture?uri=x", "/nothing", "/api/image", "/sql/answer?sql=x"):
        headers = client.get(page).headers
        assert {name: headers[name] for name in HEADERS} == HEADERS
        assert "cache-control" in headers
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert not {"http:", "https:", "*", "'unsafe-inline'", "'unsafe-eval'"} & set(policy.replace(";", " ").split())


def test_static_files_are_named_ones(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    for name in ("style.css", "browse.css", "browse.js", "viewer.js", "image_view.js", "masks.js"):
        assert client.get(f"/static/{name}").status_code == 200
    for name in ("nothing.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py", "assets.py"):
        assert client.get(f"/static/{name}").status_code == 404
