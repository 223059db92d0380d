"""Base types of every settings model: names, counts, URIs, and a section that refuses unknown keys."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A run's name is a folder and a Hive partition value, so no slash, `=`, `%` or space."""


def _digits_as_number(value: object) -> object:
    # YAML users quote numbers and command lines know only text; "8" can mean nothing but 8 here.
    if isinstance(value, str) and value != "auto":
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


AutoCount = Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(_digits_as_number)]


AutoShare = Annotated[Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_digits_as_number)]


class Section(BaseModel):
    """A frozen part of the spec; unknown keys are refused and types are not guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
