"""What is looked at: a run, conditions, an order and a place in it, all of which an address holds."""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args
from urllib.parse import urlencode

from jobs.results.browse.tables import CURRENT, Tables
from pipeline.errors import ImageStatus, InputError, SpecError

Order = Literal["name", "instances", "score", "least"]
ORDERS: dict[Order, str] = {
    "name": "name",
    "instances": "most instances first",
    "score": "highest score first",
    "least": "lowest score first",
}
STATUSES: tuple[str, ...] = get_args(ImageStatus)
MAX_TEXT_CHARS = 10_000


@dataclass(frozen=True)
class Search:
    """A choice of images of a run.

    run: its name, or "current" for each image's newest rows. name: a part of the URI. where: a condition in SQL on the
    columns of `instances`. min_area, max_area: in pixels. A condition on instances leaves the images that have at least
    one such instance. after, before: the place in the order, see `gallery`; "" is the beginning.
    is_drawn: whether thumbnails show masks. is_map: whether these are the panoptic segments, where the run has them.
    """

    run: str
    categories: tuple[str, ...] = ()
    min_score: float | None = None
    max_score: float | None = None
    min_area: int | None = None
    max_area: int | None = None
    statuses: tuple[str, ...] = ()
    name: str = ""
    where: str = ""
    order: Order = "name"
    after: str = ""
    before: str = ""
    is_drawn: bool = True
    is_map: bool = False

    @property
    def is_about_instances(self) -> bool:
        """Whether instances decide which images are in it."""
        bounds = (self.min_score, self.max_score, self.min_area, self.max_area)
        return bool(self.categories or self.where) or any(bound is not None for bound in bounds)

    @property
    def is_filtered(self) -> bool:
        """Whether there is any condition."""
        return self.is_about_instances or bool(self.statuses or self.name)

    def pairs(self) -> list[tuple[str, str]]:
        """Return the parameters of its address."""
        numbers = {
            "min_score": self.min_score,
            "max_score": self.max_score,
            "min_area": self.min_area,
            "max_area": self.max_area,
        }
        pairs = [("run", self.run)]
        pairs += [("category", category) for category in self.categories]
        pairs += [(name, str(value)) for name, value in numbers.items() if value is not None]
        pairs += [("status", status) for status in self.statuses]
        texts = {"name": self.name, "where": self.where, "after": self.after, "before": self.before}
        pairs += [(name, value) for name, value in texts.items() if value]
        pairs += [("order", self.order)] if self.order != "name" else []
        pairs += [] if self.is_drawn else [("masks", "0")]
        return pairs + ([("map", "1")] if self.is_map else [])

    def address(self, path: str = "/", **changes: Any) -> str:
        """Return the address of this search with changes; without a change of the place, of its beginning."""
        start = {} if {"after", "before"} & changes.keys() else {"after": "", "before": ""}
        return f"{path}?{urlencode(replace(self, **(start | changes)).pairs())}"

    def conditions(self) -> list[tuple[str, str]]:
        """Return each condition in words, with the address of the search without it."""
        found: list[tuple[str, dict[str, Any]]] = [
            (category, {"categories": tuple(each for each in self.categories if each != category)})
            for category in self.categories
        ]
        found += [
            (f"status {status}", {"statuses": tuple(each for each in self.statuses if each != status)})
            for status in self.statuses
        ]
        for name in ("score", "area"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            bounds = [f"from {least:,}"] if least is not None else []
            bounds += [f"to {most:,}"] if most is not None else []
            if bounds:
                found.append((f"{name} {' '.join(bounds)}", {f"min_{name}": None, f"max_{name}": None}))
        found += [(f"name contains {self.name}", {"name": ""})] if self.name else []
        found += [(self.where, {"where": ""})] if self.where else []
        return [(words, self.address(**without)) for words, without in found]

    def drawing(self) -> list[tuple[str, str]]:
        """Return the parameters that decide which instances are drawn: all but the place, the images and the order."""
        left_out = {"after", "before", "order", "name", "status", "run", "where"}
        return [(name, value) for name, value in self.pairs() if name not in left_out]

    def matches(self, instance: dict[str, Any]) -> bool:
        """Return whether an instance fulfils the conditions that need no SQL."""
        area = instance.get("area")
        return (
            (not self.categories or instance["category"] in self.categories)
            and _is_within(instance["score"], self.min_score, self.max_score)
            and _is_within(math.nan if area is None else area, self.min_area, self.max_area)
        )


def parse_search(pairs: Iterable[tuple[str, str]], tables: Tables) -> Search:
    """Read a search from the parameters of an address; unknown ones and empty ones are ignored.

    Raises:
        InputError: there is no such run.
        SpecError: a value cannot be used.
    """
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if value.strip():
            given.setdefault(name, []).append(value)
    for name, values in given.items():
        if any(len(value) > MAX_TEXT_CHARS for value in values):
            raise SpecError(f"{name} is longer than {MAX_TEXT_CHARS:,} characters.")
    last = {name: values[-1] for name, values in given.items()}
    search = Search(
        run=find_run(last.get("run"), tables),
        categories=_distinct(given.get("category", ())),
        min_score=_number(last, "min_score", 0, 1),
        max_score=_number(last, "max_score", 0, 1),
        min_area=_whole(last, "min_area"),
        max_area=_whole(last, "max_area"),
        statuses=_distinct(_one_of("status", status, STATUSES) for status in given.get("status", ())),
        name=last.get("name", "").strip(),
        where=last.get("where", "").strip(),
        order=_one_of("order", last.get("order", "name"), tuple(ORDERS)),  # type: ignore[arg-type]
        after=last.get("after", ""),
        before=last.get("before", ""),
        is_drawn=last.get("masks", "1") != "0",
        is_map=last.get("map") == "1",
    )
    _check_range("score", search.min_score, search.max_score)
    _check_range("area", search.min_area, search.max_area)
    return search


def find_run(name: str | None, tables: Tables) -> str:
    """Return a run's name: the newest with images for None, and "current" as it is.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name is None:
        return tables.results.newest_run()
    if not tables.is_current(name) and name not in tables.results.damaged_runs:
        check_run(name, tables)
    elif name in tables.results.damaged_runs:
        raise tables.results.damaged_runs[name]
    return name


def check_run(name: str, tables: Tables) -> None:
    """Check that there is a run of this name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    runs = tables.results.runs()
    if name in runs:
        return
    near = difflib.get_close_matches(name, runs, n=1)
    raise InputError(f"There is no run {name}; {f'did you mean {near[0]}?' if near else f'the newest is {runs[-1]}.'}")


def run_names(tables: Tables) -> list[str]:
    """Return what can be chosen as a run, the newest first."""
    runs = tables.results.runs()[::-1]
    return [*runs, CURRENT] if len(runs) > 1 and CURRENT not in runs else runs


def _number(given: dict[str, str], name: str, least: float, most: float) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise SpecError(f"{name} is a number from {least:g} to {most:g}, not {text!r}.")
    return value


def _whole(given: dict[str, str], name: str) -> int | None:
    text = given.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise SpecError(f"{name} is a whole number of pixels, not {text!r}.")
    return int(text)


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        raise SpecError(
            f"{name} is one of {', '.join(known)}, not {value!r}{f'; did you mean {near[0]}?' if near else '.'}"
        )
    return value


def _check_range(name: str, least: float | None, most: float | None) -> None:
    if least is not None and most is not None and least > most:
        raise SpecError(f"min_{name} ({least:g}) is more than max_{name} ({most:g}), so nothing can be found.")


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _is_within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)
