"""Messages for specs that fail validation: the key, what is wrong with it, and what it may be."""

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

RUN_FLAGS = {"input": "INPUT", "output": "OUTPUT"}
"""By required key of the job spec, the argument of `htc run` that sets it."""


def describe_problems(
    error: ValidationError,
    spec: type[BaseModel],
    tree: dict[str, Any],
    *,
    source: str | Path | None,
    name: str = "job spec",
    flags: Mapping[str, str] = RUN_FLAGS,
) -> str:
    """Describe every failed check in one sentence that names the key by its dotted path.

    Args:
        source: where the spec was read; None when flags gave everything.
        name: what messages call the spec.
        flags: by required top-level key, what sets it on the command line.
    """
    sentences: list[str] = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        key, section, description = _locate(problem["loc"], spec)
        if problem["type"] == "missing":
            sentence = _missing_key(key, spec, name, flags)
        elif problem["type"] == "extra_forbidden":
            sentence = _unknown_key(key, section, spec, name)
        else:
            sentence = _wrong_value(problem["type"], key, section, description, tree=tree, message=problem["msg"])
        if sentence not in sentences:
            sentences.append(sentence)
    if len(sentences) == 1:
        return sentences[0]
    where = f"The {name} {source}" if source is not None else f"The {name}"
    return "\n".join([f"{where} has {len(sentences)} problems:", *(f"- {sentence}" for sentence in sentences)])


def _wrong_value(
    kind: str, key: list[str], section: type[BaseModel], description: str | None, *, tree: dict[str, Any], message: str
) -> str:
    dotted = ".".join(key)
    value: Any = tree
    for part in key:
        if isinstance(value, list | tuple) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, dict) else value
    is_section = kind in ("model_type", "model_attributes_type", "dict_type")
    if is_section and (description is None or not _is_optional(section, key[-1])):
        model = section if key[-1].isdigit() else _model_of(section, key[-1])
        names = ", ".join(model.model_fields) if model else "keys"
        return f"{dotted} must be a section with the keys {names}, not {_shown(value)}."
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        # What is wrong with the spec as a whole names its keys itself.
        sentence = f"{dotted}: {message}" if key else message
        return sentence if message.endswith("?") else f"{sentence}."
    if description is None:
        return f"{dotted}: {message[:1].lower()}{message[1:]}, not {_shown(value)}."
    return f"{dotted} must be {description}, not {_shown(value)}."


def _missing_key(key: list[str], spec: type[BaseModel], name: str, flags: Mapping[str, str]) -> str:
    inner = _model_of(spec, key[0])
    has_uri = inner is not None and "uri" in inner.model_fields
    flag = flags.get(key[0])
    way_out = f"; give it in the {name}, or as {flag} on the command line" if flag else ""
    dotted = ".".join([*key, "uri"] if has_uri and len(key) == 1 else key)
    return f"{dotted} is missing{way_out}."


def _unknown_key(key: list[str], section: type[BaseModel], spec: type[BaseModel], name: str) -> str:
    known = list(section.model_fields)
    prefix = "".join(f"{part}." for part in key[:-1])
    nearest = suggestion(key[-1], known, prefix) or _elsewhere(key[-1], spec)
    place = f"the section {'.'.join(key[:-1])}" if len(key) > 1 else f"the {name}"
    begin = f"{nearest} Its keys" if nearest else "; its keys"
    return f"{'.'.join(key)} is not a key of {place}{begin} are {', '.join(known)}."


def _locate(location: tuple[int | str, ...], spec: type[BaseModel]) -> tuple[list[str], type[BaseModel], str | None]:
    """Follow an error's location down to a field; return its path, its section and its description.

    Locations also contain the names of union members ("int", "literal"), which mean nothing to a user.
    """
    section, path, description = spec, [], None
    for index, part in enumerate(location):
        path.append(str(part))
        if isinstance(part, int):
            # A member of a list, whose section is known already.
            continue
        field = section.model_fields.get(str(part))
        description = field.description if field else None
        inner = _model_of(section, str(part))
        if inner is None or index + 1 == len(location):
            break
        section = inner
    return path, section, description


def _model_of(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = section.model_fields.get(name)
    annotation = field.annotation if field else None
    members = [each for each in get_args(annotation) if each not in (type(None), ...)] or [annotation]
    found = members[0] if len(members) == 1 else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _is_optional(section: type[BaseModel], name: str) -> bool:
    field = section.model_fields.get(name)
    return field is not None and type(None) in get_args(field.annotation)


def suggestion(word: str, known: list[str] | tuple[str, ...], prefix: str) -> str:
    """Return "; did you mean ...?" with the known word nearest to `word`; empty if none is near."""
    nearest = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def _elsewhere(word: str, spec: type[BaseModel]) -> str:
    """Suggest the section that has this key: `batch_size` at the top belongs to compute."""
    for name in spec.model_fields:
        inner = _model_of(spec, name)
        if inner is not None and word in inner.model_fields:
            return f"; did you mean {name}.{word}?"
    return ""


# A few kilobytes of YAML aliases can stand for lists of billions of words, which must not be written out.
_shortened = reprlib.Repr()
_shortened.maxlevel = 3
_shortened.maxlist = _shortened.maxtuple = _shortened.maxdict = 20
_shortened.maxstring = _shortened.maxother = 80


def _shown(value: object) -> str:
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if isinstance(value, bool | None) else _shortened.repr(value)
    # A line break would split the sentence.
    return re.sub(r"\s+", " ", text if len(text) <= 60 else text[:57] + "...")
