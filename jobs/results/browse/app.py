"""The web app: which address shows what. Reading is done in threads, a few for each kind."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jobs.results.browse.access import Access, Guard
from jobs.results.browse.changes import MIN_SCORE, find_changes, image_changes, run_changes
from jobs.results.browse.failures import find_failures
from jobs.results.browse.gallery import Facets, find_facets, find_page, place_of
from jobs.results.browse.pages import Pages, json_answer, static_file
from jobs.results.browse.pictures import Pictures, tile
from jobs.results.browse.run_facts import describe_run, list_runs
from jobs.results.browse.search import ORDERS, STATUSES, Search, find_run, parse_search, run_names
from jobs.results.browse.tables import Answer, ImageFacts, SqlError, Tables
from jobs.results.browse.viewer import hex_colour, image_address, picture_address, viewer_item
from jobs.results.browse.work import BusyError, Job, ReaderLeftError, Threads, TimeLimitError
from jobs.results.drawing import colour_of
from pipeline.errors import DamagedFileError, HtcError, InputError, NotFoundError, SpecError, StorageError
from pipeline.output.mask_functions import MASK_FUNCTIONS
from pipeline.redaction import redact

TABLES_S = 30.0
"""How long a question may take; also SQL of the user's own."""
PICTURE_S = 15.0
"""How long a picture may take; then a grey tile says so."""
WHOLE_S = 3600.0
"""How long a comparison of whole runs may take."""
MAX_SQL_ROWS = 1_000
MOST_INSTANCES = 2_000
TABLE_THREADS = 4
PICTURE_THREADS = 6
# A page asks for 48 thumbnails, and several may be open.
MOST_WAITING = 200
KEPT_FACETS = 100
EXAMPLES = (
    ("Instances by category", "SELECT category, count(*) AS n FROM instances GROUP BY category ORDER BY n DESC"),
    (
        "The largest instances",
        "SELECT uri, run, category, score, area FROM instances WHERE score >= 0.5 ORDER BY area DESC LIMIT 50",
    ),
    (
        "Images with most persons",
        "SELECT uri, run, count(*) AS persons FROM instances WHERE category = 'person' AND score >= 0.5\n"
        "GROUP BY ALL ORDER BY persons DESC LIMIT 50",
    ),
    (
        "Masks with the longest outlines for their area",
        "SELECT uri, run, category, score, mask_perimeter(mask) / sqrt(area) AS raggedness FROM instances\n"
        "WHERE score >= 0.5 AND area > 1000 ORDER BY raggedness DESC LIMIT 50",
    ),
    ("Damaged masks", "SELECT uri, run, instance FROM instances WHERE NOT mask_is_valid(mask)"),
    ("Failed images by reason", "SELECT status, error, count(*) AS n FROM images WHERE status <> 'ok' GROUP BY ALL"),
)
NUMBERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UBIGINT", "FLOAT", "DOUBLE"})
T = TypeVar("T")
log = logging.getLogger(__name__)


class Browser:
    """The app's state and its pages."""

    def __init__(
        self, tables: Tables, pages: Pages, *, tables_s: float = TABLES_S, picture_s: float = PICTURE_S
    ) -> None:
        """`tables_s`, `picture_s`: limits in seconds."""
        self.tables = tables
        self.pages = pages
        self.pictures = Pictures(tables)
        self._tables_s = tables_s
        self._picture_s = picture_s
        self._asking = Threads("tables", TABLE_THREADS, most_waiting=MOST_WAITING)
        self._drawing = Threads("pictures", PICTURE_THREADS, most_waiting=MOST_WAITING)
        self._listing = Threads("listing", 1, most_waiting=2)
        # Of whole runs: long, and one at a time.
        self._comparing = Threads("comparing", 1, most_waiting=2)
        self._facets: dict[tuple[int, Search], Facets] = {}

    def close(self) -> None:
        """Stop all work."""
        for threads in (self._asking, self._drawing, self._listing, self._comparing):
            threads.close()

    def busy(self) -> int:
        """Return how many pieces of work run or wait."""
        return sum(threads.busy() for threads in (self._asking, self._drawing, self._listing, self._comparing))

    def routes(self) -> list[Route]:
        """Return the addresses."""
        pages = {
            "/": self.gallery,
            "/image": self.image,
            "/failures": self.failures,
            "/compare": self.compare,
            "/compare/image": self.compare_image,
            "/sql": self.sql,
            "/runs": self.runs,
            "/run": self.run,
        }
        parts = {"/facets": self.facets, "/sql/answer": self.sql_answer, "/compare/whole": self.compare_whole}
        values = {"/api/image": self.image_json, "/api/step": self.step_json, "/api/changes": self.changes_json}
        routes = [Route(path, self._guarded(page)) for path, page in (pages | parts).items()]
        routes += [Route(path, self._guarded(answer, is_json=True)) for path, answer in values.items()]
        routes.append(Route("/picture", self.picture))
        routes.append(Route("/refresh", self._guarded(self.refresh), methods=["POST"]))
        routes.append(Route("/static/{name}", self.static))
        return routes

    # Pages

    async def gallery(self, request: Request) -> Response:
        """Show a page of thumbnails."""
        self._refresh_if_old()
        search = self._search(request)
        page = await self._ask(partial(find_page, search, self.tables), request)
        return self.pages.render(
            "gallery.html",
            search=search,
            page=page,
            place_of=partial(place_of, search),
            has_map=self.tables.has_map(search.run),
            **self._choices(search),
        )

    async def facets(self, request: Request) -> Response:
        """Show what there is to choose from, as a part of the gallery."""
        search = self._search(request)
        key = self.tables.generation, _without_place(search)
        found = self._facets.get(key)
        if found is None:
            found = await self._ask(partial(find_facets, search, self.tables), request)
            while len(self._facets) >= KEPT_FACETS:
                self._facets.pop(next(iter(self._facets)))
            self._facets[key] = found
        return self.pages.render(
            "facets.html", search=search, facets=found, colour_of=lambda category: hex_colour(colour_of(category))
        )

    async def image(self, request: Request) -> Response:
        """Show one image with its masks."""
        search = self._search(request)
        facts = await self._find(request, search)
        return self.pages.render(
            "image.html",
            search=search,
            image=facts,
            data=f"/api/image?{request.url.query}",
            step=f"/api/step?{request.url.query}",
            place=request.query_params.get("at", facts.uri),
            instance=request.query_params.get("instance", ""),
            drawn=picture_address(search, facts),
        )

    async def failures(self, request: Request) -> Response:
        """Show images that have no result, with their reasons."""
        self._refresh_if_old()
        search = self._search(request)
        reason = request.query_params.get("reason", "")
        found = await self._ask(partial(find_failures, search, reason, self.tables), request)
        return self.pages.render("failures.html", search=search, reason=reason, found=found, **self._choices(search))

    async def compare(self, request: Request) -> Response:
        """Show what changed between two runs, page by page."""
        self._refresh_if_old()
        runs = run_names(self.tables)
        names = self.tables.results.runs()
        if len(names) < 2:
            return self.pages.render("compare_one.html", search=self._search(request), runs=runs)
        params = request.query_params
        b = find_run(params.get("b") or None, self.tables)
        a = find_run(params.get("a") or next((run for run in reversed(names) if run != b), names[0]), self.tables)
        search = Search(run=b, name=params.get("name", "").strip(), after=params.get("after", ""), before="")
        found, is_all = None, params.get("all") == "1"
        if a != b:
            found = await self._ask(partial(find_changes, a, search, self.tables, is_all=is_all), request)
        return self.pages.render(
            "compare.html",
            search=search,
            a=a,
            b=b,
            runs=runs,
            found=found,
            is_all="1" if is_all else "",
            min_score=MIN_SCORE,
        )

    async def compare_whole(self, request: Request) -> Response:
        """Compare two runs as wholes, as a part of the page."""
        a, b = self._two_runs(request)
        diff, problem = None, None
        try:
            # Its own limit: it reads both runs.
            diff = await self._comparing.run(partial(run_changes, a, b, self.tables), request, limit_s=WHOLE_S)
        except ReaderLeftError:
            raise
        except HtcError as error:
            problem = redact(str(error))
        return self.pages.render("compare_whole.html", a=a, b=b, diff=diff, problem=problem)

    async def compare_image(self, request: Request) -> Response:
        """Show one image of two runs side by side."""
        a, b = self._two_runs(request)
        uri = request.query_params.get("uri", "")
        sides = [(run, await self._ask(partial(self._side_address, run, uri), request)) for run in (a, b)]
        if not any(address for _, address in sides):
            raise NotFoundError(f"Neither {a} nor {b} has an image {uri}.")
        data = f"/api/changes?{urlencode({'a': a, 'b': b, 'uri': uri})}"
        return self.pages.render(
            "compare_image.html",
            search=Search(run=b),
            a=a,
            b=b,
            uri=uri,
            sides=sides,
            data=data if all(address for _, address in sides) else "",
        )

    def _side_address(self, run: str, uri: str, *, job: Job) -> str:
        """Return where the values of a run's image are, "" where it has no such image."""
        try:
            image = self.tables.find_image(run, uri, job=job)
        except NotFoundError:
            return ""
        return f"/api/image?{urlencode({'run': run, 'uri': uri, 'shard': image.shard, 'of': image.run})}"

    async def sql(self, request: Request) -> Response:
        """Ask by SQL; the answer comes as a part, or with the page where no script runs."""
        text = request.query_params.get("sql", "").strip()
        answer, problem = (None, None)
        if text and request.query_params.get("answer") == "page":
            answer, problem = await self._answer(text, request)
        return self.pages.render(
            "sql.html",
            search=Search(run=self.tables.results.newest_run()),
            sql=text,
            schema=await self._ask(self.tables.schema, request),
            functions=[(function.name, function.summary) for function in MASK_FUNCTIONS],
            examples=EXAMPLES,
            limit_s=self._tables_s,
            **_described(answer, problem),
        )

    async def sql_answer(self, request: Request) -> Response:
        """Answer SQL, as a part of the page; a wrong statement is answered too."""
        answer, problem = await self._answer(request.query_params.get("sql", "").strip(), request)
        return self.pages.render(
            "sql_answer.html", search=Search(run=self.tables.results.newest_run()), **_described(answer, problem)
        )

    async def runs(self, request: Request) -> Response:
        """Show the runs."""
        self._refresh_if_old()
        rows = await self._ask(lambda job: list_runs(self.tables, job), request)
        search = Search(run=self.tables.results.newest_run())
        damaged = {name: str(error) for name, error in self.tables.results.damaged_runs.items()}
        return self.pages.render("runs.html", search=search, rows=rows, damaged=damaged)

    async def run(self, request: Request) -> Response:
        """Show one run: what ran, on what, how it ended."""
        name = find_run(request.query_params.get("run") or None, self.tables)
        if self.tables.is_current(name):
            return RedirectResponse("/runs", HTTPStatus.SEE_OTHER)
        facts = await self._ask(lambda job: describe_run(self.tables, name), request)
        return self.pages.render("run.html", search=Search(run=name), run=name, facts=facts)

    # Values

    async def image_json(self, request: Request) -> Response:
        """Return an image with its instances, as the viewer takes it."""
        search = self._search(request)
        facts = await self._find(request, search)
        rows = await self._ask(lambda job: self.tables.instances(facts), request)
        try:
            picture = await self._drawing.run(lambda job: self.pictures.whole(facts), request, limit_s=self._picture_s)
            problem = picture.problem
        except TimeLimitError:
            problem = f"its store did not answer within {self._picture_s:g} s"
        return json_answer(viewer_item(facts, rows[:MOST_INSTANCES], len(rows), problem, search))

    async def step_json(self, request: Request) -> Response:
        """Return the address of the image before or after another one."""
        search = self._search(request)
        page = await self._ask(partial(find_page, search, self.tables, images=1), request)
        return json_answer({"address": image_address(search, page.images[0]) if page.images else None})

    async def changes_json(self, request: Request) -> Response:
        """Return what changed in one image between two runs."""
        a, b = self._two_runs(request)
        uri = request.query_params.get("uri", "")
        try:
            return json_answer(await self._ask(lambda job: image_changes(a, b, uri, self.tables), request))
        except InputError as error:
            # Such as a damaged mask: the pictures are shown all the same.
            return json_answer({"changes": [], "problem": redact(str(error))})

    async def picture(self, request: Request) -> Response:
        """Return a picture; whatever goes wrong is a grey tile that says so, because an <img> shows no text."""
        try:
            search = self._search(request)
            facts = await self._find(request, search)
            is_whole = request.query_params.get("size") == "whole"
            make = (lambda job: self.pictures.whole(facts)) if is_whole else (
                lambda job: self.pictures.thumbnail(facts, search)
            )  # fmt: skip
            made = await self._drawing.run(make, request, limit_s=self._picture_s)
        except ReaderLeftError:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        except TimeLimitError:
            made = tile("the store is slow; load the page again")
        except HtcError as error:
            made = tile(redact(str(error)))
        except Exception:
            log.exception("A picture could not be made: %s", request.url.path)
            made = tile("unexpected failure; the server's log has the reason")
        return Response(made.payload, media_type=made.media_type, headers={"Cache-Control": "private, max-age=60"})

    async def refresh(self, request: Request) -> Response:
        """List again what is committed, and go back."""
        await self._listing.run(lambda job: self.tables.refresh(), request, limit_s=self._tables_s)
        back = request.query_params.get("back", "/")
        # Only to a page of our own: one slash, and no other host behind it.
        is_own = back.startswith("/") and not back.startswith(("//", "/\\"))
        return RedirectResponse(back if is_own else "/", HTTPStatus.SEE_OTHER)

    async def static(self, request: Request) -> Response:
        """Return a script or a style sheet."""
        found = static_file(request.path_params["name"])
        return found or self.pages.problem(HTTPStatus.NOT_FOUND, "There is no such file.")

    # Parts of the above

    def _search(self, request: Request) -> Search:
        return parse_search(request.query_params.multi_items(), self.tables)

    def _choices(self, search: Search) -> dict[str, Any]:
        return {
            "runs": run_names(self.tables),
            "orders": ORDERS,
            "statuses": STATUSES,
            "image_address": partial(image_address, search),
            "picture_address": lambda row: picture_address(search, ImageFacts(**_facts_of(row))),
        }

    def _two_runs(self, request: Request) -> tuple[str, str]:
        """Return the runs to compare.

        Raises:
            SpecError: they are one, or not named.
        """
        named = [request.query_params.get(side, "") for side in "ab"]
        if not all(named):
            raise SpecError("Name the two runs to compare, as a and b.")
        a, b = (find_run(name, self.tables) for name in named)
        if a == b:
            raise SpecError(f"Both sides are {a}, which does not differ from itself; choose another run.")
        return a, b

    async def _ask(self, question: Callable[..., T], request: Request) -> T:
        return await self._asking.run(lambda job: question(job=job), request, limit_s=self._tables_s)

    async def _find(self, request: Request, search: Search) -> ImageFacts:
        """Return the image that the address names.

        Raises:
            SpecError: it names none. NotFoundError: there is none.
        """
        uri = request.query_params.get("uri", "")
        if not uri:
            raise SpecError("The address names no image (uri).")
        shard = request.query_params.get("shard", "")
        place = int(shard) if shard.isascii() and shard.isdigit() and len(shard) < 10 else None
        # In a search over all runs, the address also names the run that has the row.
        run = find_run(request.query_params.get("of") or search.run, self.tables)
        return await self._ask(lambda job: self.tables.find_image(run, uri, job=job, shard=place), request)

    async def _answer(self, sql: str, request: Request) -> tuple[Answer | None, HtcError | None]:
        if not sql:
            return None, SqlError("The SQL holds no statement.")
        try:
            return await self._ask(lambda job: self.tables.ask_freely(sql, job=job, rows=MAX_SQL_ROWS), request), None
        except (SpecError, StorageError, TimeLimitError, BusyError) as error:
            return None, error

    def _refresh_if_old(self) -> None:
        if self.tables.is_old():
            self._listing.start(lambda job: self.tables.refresh())

    def _guarded(
        self, page: Callable[[Request], Awaitable[Response]], *, is_json: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the page with errors as sentences."""

        def problem(status: int, sentence: str, excerpt: str = "") -> Response:
            if is_json:
                return json_answer({"problem": sentence}, status)
            return self.pages.problem(status, sentence, excerpt)

        async def guarded(request: Request) -> Response:
            try:
                return await page(request)
            except ReaderLeftError:
                return Response(status_code=HTTPStatus.NO_CONTENT)
            except HtcError as error:
                return problem(_status_of(error), redact(str(error)), getattr(error, "excerpt", ""))
            except Exception:
                log.exception("%s failed", request.url.path)
                return problem(
                    HTTPStatus.INTERNAL_SERVER_ERROR, "Unexpected failure; the terminal of `htc browse` has the reason."
                )

        return guarded


def build_app(tables: Tables, access: Access, **limits: float) -> tuple[ASGIApp, Browser]:
    """Return the app behind its guard, and its state, which must be closed.

    Args:
        limits: see `Browser`.
    """
    pages = Pages(tables.output_uri)
    browser = Browser(tables, pages, **limits)

    async def not_found(request: Request, error: Exception) -> Response:
        return pages.problem(HTTPStatus.NOT_FOUND, f"There is no page {request.url.path}.")

    async def not_allowed(request: Request, error: Exception) -> Response:
        return pages.problem(HTTPStatus.METHOD_NOT_ALLOWED, "This page is only read.")

    app = Starlette(routes=browser.routes(), exception_handlers={404: not_found, 405: not_allowed})
    return Guard(app, access, pages), browser


def _status_of(error: HtcError) -> HTTPStatus:
    kinds: Sequence[tuple[type[HtcError] | tuple[type[HtcError], ...], HTTPStatus]] = (
        (BusyError, HTTPStatus.SERVICE_UNAVAILABLE),
        (TimeLimitError, HTTPStatus.GATEWAY_TIMEOUT),
        ((NotFoundError, InputError), HTTPStatus.NOT_FOUND),
        (SpecError, HTTPStatus.BAD_REQUEST),
        (DamagedFileError, HTTPStatus.INTERNAL_SERVER_ERROR),
        (StorageError, HTTPStatus.BAD_GATEWAY),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def _without_place(search: Search) -> Search:
    return replace(search, after="", before="", order="name", is_drawn=True)


def _facts_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ImageFacts.__dataclass_fields__}


def _described(answer: Answer | None, problem: HtcError | None) -> dict[str, Any]:
    """Return an answer as the templates take it, with the columns that name an image."""
    names = [name for name, _ in answer.columns] if answer else []
    return {
        "answer": answer,
        "problem": problem,
        "limit": MAX_SQL_ROWS,
        "numbers": NUMBERS,
        "uri_at": names.index("uri") if "uri" in names else None,
        "run_at": names.index("run") if "run" in names else None,
        "instance_at": names.index("instance") if "instance" in names else None,
    }
