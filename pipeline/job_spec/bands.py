"""Bands in the spec: which of an image's bands are looked at, and which of their values are black and white."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MOST_BANDS = 65_535
"""A TIFF cannot say more (`SamplesPerPixel`, TIFF 6.0)."""


def _as_tuple(value: object) -> object:
    """Return the numbers of a list, or of a text as a command line has it: "4,3,2"."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return tuple(_number(part) for part in parts)
    return tuple(value) if isinstance(value, list) else value


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _as_floats(value: object) -> object:
    numbers = _as_tuple(value)
    if isinstance(numbers, tuple):
        return tuple(float(each) if type(each) is int else each for each in numbers)
    return numbers


def _refuse_empty(value: tuple[float, ...]) -> tuple[float, ...]:
    if value[0] >= value[-1]:
        raise ValueError("the first value is black and must be smaller than the second, which is white")
    return value


_Band = Annotated[int, Field(ge=1, le=MOST_BANDS)]
_Value = Annotated[float, Field(allow_inf_nan=False)]
Bands = Annotated[tuple[_Band, ...], Field(min_length=3, max_length=3), BeforeValidator(_as_tuple)]
"""The bands that are red, green and blue, counted from 1."""
ValueRange = Annotated[
    tuple[_Value, ...],
    Field(min_length=2, max_length=2),
    BeforeValidator(_as_floats),
    AfterValidator(_refuse_empty),
]
"""The values that are black and white."""


def plain_bands(bands: tuple[int, ...] | None, value_range: tuple[float, ...] | None) -> Mapping[str, Any]:
    """Return both by their dotted keys, for a run's identity; absent where they are not given."""
    given = {"input.bands": bands, "input.value_range": value_range}
    return {key: list(value) for key, value in given.items() if value is not None}
