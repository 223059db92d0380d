"""The keys of a job spec as tables, from the spec's own model: docs/spec.md has the place for them."""

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.job_spec.job import JobSpec

PLACE = "<!-- keys -->"
_TERM = re.compile(r"^(\w+(?:, \w+)*): (.*)")


def with_keys(page: str) -> str:
    """Return the page with the tables of all sections in their place."""
    return page.replace(PLACE, "\n\n".join(_sections(JobSpec, "")))


def _sections(model: type[BaseModel], path: str) -> list[str]:
    sentence, notes = _docstring(model)
    rows, below = [], []
    for name, field in model.model_fields.items():
        if inner := _model_of(field.annotation):
            below += _sections(inner, f"{path}{name}.")
        else:
            text = ". ".join(part.rstrip(".") for part in (field.description or "", notes.get(name, "")) if part)
            rows.append(f"| `{path}{name}` | {_default(field)} | {_cell(text)} |")
    head = [f"### `{path.rstrip('.')}`" if path else "### The file itself", _cell(sentence)]
    return [*head, "\n".join(["| key | default | value |", "|---|---|---|", *rows]), *below] if rows else below


def _model_of(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)), None)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
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
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
