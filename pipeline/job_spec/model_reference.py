"""How a spec names a model that is none of the presets: by its factory.

A factory is "package.module:function"; "torchvision:NAME" or "transformers:NAME", for which this program has adapters;
or the name under which an installed package registers one, as an entry point of the group `htc_batch.models`.
"""

import math
from importlib import metadata
from pathlib import Path
from typing import Any

from htc_model.config import PRESETS
from pipeline.errors import SpecError
from pipeline.storage.uris import absolute_uri, has_scheme

ENTRY_POINT_GROUP = "htc_batch.models"
ADAPTERS = ("torchvision", "transformers")
FACTORY_WEIGHTS_WORDS = ("default", "untrained")
"""What `model.weights` may be, of a factory, beside a path or URI; "default" leaves the choice to the factory."""


def is_factory(reference: str) -> bool:
    """Return whether a model's name is a factory's; presets come first."""
    return reference not in PRESETS and (":" in reference or reference in registered_factories())


def registered_factories() -> dict[str, metadata.EntryPoint]:
    """Return the factories that installed packages register, by name; nothing is imported."""
    found = metadata.entry_points(group=ENTRY_POINT_GROUP)
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


def adapter_of(reference: str) -> tuple[str, str] | None:
    """Split "torchvision:NAME" into the adapter and the name; None for other factories."""
    prefix, colon, name = reference.partition(":")
    return (prefix, name) if colon and prefix in ADAPTERS else None


def absolute_reference(reference: str) -> str:
    """Make the path in "transformers:FOLDER" absolute; other references are returned as they are."""
    split = adapter_of(reference)
    if split is None or not split[1] or not Path(split[1]).expanduser().exists():
        return reference
    return f"{split[0]}:{Path(split[1]).expanduser().absolute()}" if split[0] == "transformers" else reference


def factory_weights(weights: str) -> str:
    """Return "default" and "untrained" unchanged, and a path made absolute.

    Raises:
        SpecError: it is neither a known word nor like a path.
    """
    if weights in FACTORY_WEIGHTS_WORDS:
        return weights
    if "/" in weights or "." in weights or has_scheme(weights) or Path(weights).exists():
        return absolute_uri(weights)
    raise SpecError(
        "model.weights must be default (the factory's own), untrained, or the path or URI of a file, for a model that "
        f"is none of the presets, not {weights!r}."
    )


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return a factory's options.

    Raises:
        ValueError: a value is of a kind that JSON does not have; the message names its place.
    """
    for key, value in options.items():
        _check_value(key, value)
    return options


def _check_value(place: str, value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{place} has the key {key!r}, which is no text")
            _check_value(f"{place}.{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_value(f"{place}[{number}]", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} must be a finite number, not {value}")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{place} must be text, a number, true, false, null, a list or keys and values, not {value!r}")
