"""Base types of the settings models: names, counts, shares, and a section that refuses unknown keys."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A run's name is a folder and a Hive partition value, so it has no slash, `=`, `%` or space."""


def digits_as_number(value: object) -> object:
    """Return the number that a text such as "8" or "0.5" stands for; anything else unchanged."""
    # YAML users quote numbers, and a command line holds only text.
    if isinstance(value, str) and value != "auto":
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


AutoCount = Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(digits_as_number)]


_RANGE = r"^[1-9]\d{0,5}:[1-9]\d{0,5}$"


def _check_range(text: str) -> str:
    fewest, most = (int(part) for part in text.split(":"))
    if most < fewest:
        # As for any other text that is no range.
        raise PydanticKnownError("string_pattern_mismatch", {"pattern": _RANGE})
    return text


CountRange = Annotated[str, Field(pattern=_RANGE), AfterValidator(_check_range)]
"""A smallest and a largest number: "2:8"."""


AutoCountOrRange = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1)] | CountRange, BeforeValidator(digits_as_number)
]


AutoShare = Annotated[Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(digits_as_number)]


class Section(BaseModel):
    """A frozen section of the spec; refuses unknown keys and does not convert types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
