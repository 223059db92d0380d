"""The caller's own `load_model`: its name, its identity, and how it is called."""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from htc_model.config import ModelConfigError
from pipeline.errors import HtcError, ModelError
from pipeline.job_spec.model import ModelSection
from pipeline.models.foreign_code import is_ctrl_c, place_of, raised
from pipeline.models.identity import FactoryFingerprint, identify_model
from pipeline.models.value_hash import code_of, hash_value
from pipeline.storage.storage import Storage
from pipeline.weights.fingerprint import ModelFingerprint

log = logging.getLogger(__name__)

LoadFunction = Callable[..., Any]


@dataclass(frozen=True)
class CallersFingerprint(FactoryFingerprint):
    """Identity of a model that the caller's `load_model` returns.

    preset: the function, "module:name". weights_sha256: of its code and the values that it holds, or of its `identity`.
    config_sha256: of the spec's settings of detections; of its whole model, where the function is given the section.
    """

    is_callers: bool = True


def function_name(function: object) -> str:
    """Return the name of a function, of a partial's function, or of a callable object's class, "my_module:load"."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def check_function(function: object) -> None:
    """Check, before anything is begun, that `load_model` can be called.

    Raises:
        ModelError: it is no function, or needs more than the section; one sentence.
    """
    if not callable(function):
        raise ModelError(
            f"load_model is of type {type(function).__name__}, which cannot be called; give a function that returns "
            "the model."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*([None] if takes_section(function) else []))
    except TypeError as error:
        raise ModelError(
            f"load_model ({function_name(function)}) cannot be called: {error}; it is given the spec's model section "
            "at most, functools.partial gives it more."
        ) from error


def takes_section(function: LoadFunction) -> bool:
    """Return whether a `load_model` is called with the spec's model section: its first parameter wants a value.

    That is a parameter without a default, or one whose name is `section`.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # Written in C.
        return True
    if not parameters:
        return False
    first = parameters[0]
    if first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return False
    return first.default is first.empty or first.name == "section"


def call_function(function: LoadFunction, section: ModelSection) -> Any:
    """Return the model of a `load_model`, called with the section where it takes it.

    Raises:
        ModelError: it raises; one sentence with its name and the place. A card or a memory that another process has
            filled is raised as it is, as another worker may find room.
    """
    import torch

    from htc_model.weights.openmmlab import WeightsError

    passed = (HtcError, ModelConfigError, WeightsError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
    try:
        return function(section) if takes_section(function) else function()
    except passed:
        raise
    except BaseException as error:  # the boundary of another's function, sys.exit included
        if is_ctrl_c(error):
            raise
        log.debug("load_model raised", exc_info=True)
        raise ModelError(
            f"load_model ({function_name(function)}) raised {raised(error)}, in {place_of(error)}."
        ) from error


def identify_function(
    function: LoadFunction, section: ModelSection, storage: Storage | None = None
) -> tuple[ModelSection, ModelFingerprint]:
    """Return the section that a `load_model` is given, with its preset, and the model's fingerprint.

    Raises:
        ModelError: as `check_function`.
        WeightsUnavailableError: the section's weights, which it is given, are not available.
    """
    check_function(function)
    settings: dict[str, object] = {
        "score_threshold": section.score_threshold,
        "max_detections": section.max_detections,
    }
    trained = True
    if takes_section(function):
        section, given = identify_model(section, storage)
        settings["section"] = given.to_dict()
        trained = given.trained
    named = getattr(function, "identity", None)
    is_named = isinstance(named, str)
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    name = function_name(function)
    return section, CallersFingerprint(
        name,
        hashlib.sha256(str(named).encode()).hexdigest() if is_named else hash_value(function),
        hashlib.sha256(canonical.encode()).hexdigest(),
        trained=trained,
        code="" if is_named else code_of(name.partition(":")[0]),
    )
