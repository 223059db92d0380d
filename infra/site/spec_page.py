"""The keys of a job spec as tables of docs/spec.md, from the spec's own model.

`python infra/site/spec_page.py --write` writes them again; a test compares.
"""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.job_spec.job import JobSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "spec.md"
BEGIN, END = "<!-- keys -->\n", "<!-- end of the keys -->\n"
_TERM = re.compile(r"^(\w+(?:, \w+)*): (.*)")


def with_keys(page: str) -> str:
    """Return the page with the tables of all sections in their place."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return "".join([before, BEGIN, "\n", "\n\n".join(_sections(JobSpec, "")), "\n\n", END, after])


def _sections(model: type[BaseModel], path: str) -> list[str]:
    sentence, notes = _docstring(model)
    rows, below = [], []
    for name, field in model.model_fields.items():
        if inner := _model_of(field.annotation):
            below += _sections(inner, f"{path}{name}.")
        else:
            cells = (f"`{path}{name}`", _default(field), _cell(field.description or ""), _cell(notes.get(name, "")))
            rows.append(f"| {' | '.join(cells)} |")
    head = [f"### `{path.rstrip('.')}`" if path else "### The file itself", _cell(sentence)]
    return [*head, "\n".join(["| key | default | value | |", "|---|---|---|---|", *rows]), *below] if rows else below


def _model_of(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)), None)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is PydanticUndefined else f"`{json.dumps(value, default=str)}`"


def _docstring(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Its first sentence, and what the lines `key: ...` below say of each key."""
    first, _, rest = inspect.cleandoc(model.__doc__ or "").partition("\n\n")
    notes: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if term := _TERM.match(line):
            names = term[1].split(", ")
            notes.update(dict.fromkeys(names, term[2]))
        elif line.startswith(" "):
            notes.update({name: f"{notes[name]} {line.strip()}" for name in names})
    return " ".join(first.split()), notes


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    new = with_keys(PAGE.read_text(encoding="utf-8"))
    if "--write" in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    else:
        sys.stdout.write(new)
