"""Finds the factory that a spec names, and makes the model: in the driver to check the name, in workers to load it."""

import difflib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.job_spec.model import ModelSection
from pipeline.models.adapters import find_adapter
from pipeline.models.entry_points import load_registered
from pipeline.models.foreign_code import is_ctrl_c, place_of, raised
from pipeline.storage.storage import Storage
from pipeline.weights.cache import resolve_weights

if TYPE_CHECKING:
    from pipeline.models.checked import CheckedModel

log = logging.getLogger(__name__)

Factory = Callable[..., object]


def search_path() -> tuple[str, ...]:
    """Return where this process finds modules, and the current folder last: for the workers, see `find_factory`."""
    folders = [folder for folder in sys.path if Path(folder).is_absolute()]
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        return tuple(folders)
    return (*(folder for folder in folders if folder != here), here)


def find_factory(reference: str, folders: Sequence[str] = ()) -> Factory:
    """Import the factory that a spec names.

    Args:
        reference: see `pipeline.job_spec.model_reference`.
        folders: searched for its module after everything that is installed; none are the current folder.

    Raises:
        ModelError: the module or the function is missing, cannot be imported, or is none; one sentence.
    """
    found = find_adapter(reference)
    if found is not None:
        adapter, name = found
        module = adapter.load()
        module.check_name(name)
        return partial(module.make, name)
    if ":" not in reference:
        return load_registered(reference)
    module_name, _, function = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *function.split(".")]):
        raise ModelError(f"{reference!r} names no factory; write package.module:function, as in my_models:load.")
    # Last, so that a torch.py that happens to be in the current folder hides nothing.
    added = folders or search_path()
    sys.path.extend(folder for folder in added if folder not in sys.path)
    return _get(_import(module_name, reference, added), function, reference)


def _import(name: str, reference: str, folders: Sequence[str]) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(_no_module(error.name, reference, folders)) from error
        raise ModelError(
            f"The model factory {reference} needs the package {error.name}, which is not installed here; install it: "
            f"pip install {(error.name or '').partition('.')[0]}"
        ) from error
    except BaseException as error:  # the boundary of another's module, which may call sys.exit
        if is_ctrl_c(error):
            raise
        raise ModelError(
            f"The model factory {reference} cannot be imported: {raised(error)}; see {place_of(error)}."
        ) from error


def _no_module(missing: str, reference: str, folders: Sequence[str]) -> str:
    here = Path(folders[-1]) if folders else Path()
    known = [each.stem if each.is_file() else each.name for each in here.iterdir() if _is_importable(each)]
    nearest = difflib.get_close_matches(missing.partition(".")[0], known, n=1)
    tip = f"did you mean {nearest[0]}?" if nearest and "." not in missing else "install the package, or correct it."
    return (
        f"The model factory {reference} is not found: there is no module {missing}, neither installed nor in {here}; "
        f"{tip}"
    )


def _is_importable(path: Path) -> bool:
    return (path.suffix == ".py" and path.stem.isidentifier()) or (path / "__init__.py").is_file()


def _get(module: ModuleType, function: str, reference: str) -> Factory:
    found: Any = module
    for name in function.split("."):
        if not hasattr(found, name):
            callables = [each for each in dir(found) if callable(getattr(found, each, None)) and each[:1] != "_"]
            nearest = difflib.get_close_matches(name, callables, n=1)
            tip = f"; did you mean {nearest[0]}?" if nearest else "."
            place = getattr(module, "__file__", None) or "no file"
            raise ModelError(
                f"The model factory {reference} is not found: {module.__name__} ({place}) has no {name}{tip}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise ModelError(
            f"The model factory {reference} is not callable: it is of type {type(found).__name__}; name a function or "
            "class that returns the model."
        )
    factory: Factory = found
    return factory


def make_model(section: ModelSection, storage: Storage | None = None, *, folders: Sequence[str] = ()) -> "CheckedModel":
    """Find a spec's factory and call it; returns its model, on the CPU, whose every result is checked.

    Args:
        section: with a factory.
        folders: see `find_factory`.

    Raises:
        ModelError: the factory is not found, raises, does not take the options, or returns no model.
        WeightsUnavailableError: the weights file is not available.
    """
    from pipeline.models.checked import CheckedModel

    reference = section.factory or section.preset
    factory = find_factory(reference, folders)
    values: dict[str, Any] = dict(section.options)
    if section.weights != "default":
        # "untrained" has no file.
        values["weights"] = resolve_weights(section, storage) or section.weights
    check_options(factory, values, reference)
    model = call_factory(factory, values, reference)
    return CheckedModel(
        model, reference=reference, score_threshold=section.score_threshold, max_detections=section.max_detections
    )


def call_factory(factory: Factory, values: dict[str, Any], reference: str) -> object:
    """Call a factory.

    Raises:
        ModelError: it raises; one sentence with the place.
    """
    try:
        return factory(**values)
    except (ModelError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        raise ModelError(
            f"The model factory {reference} needs the package {error.name}, which is not installed here; install it: "
            f"pip install {(error.name or '').partition('.')[0]}"
        ) from error
    except BaseException as error:  # the boundary of another's function, which may call sys.exit
        if is_ctrl_c(error):
            raise
        log.debug("the model factory %s raised", reference, exc_info=True)
        raise ModelError(
            f"The model factory {reference} raised {raised(error)}, in {place_of(error)}; `htc model check "
            f"{reference}` tries it alone."
        ) from error


def check_options(factory: Factory, values: dict[str, Any], reference: str) -> None:
    """Check that a factory takes these keyword arguments.

    Raises:
        ModelError: it does not; names the option and the nearest one.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        # Written in C: it has no signature, and raises when it is called.
        return
    parameters = signature.parameters.values()
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return
    taken = [each.name for each in parameters if each.kind not in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL)]
    for name in values:
        if name not in taken:
            raise ModelError(_unknown_option(name, [each for each in taken if each != "weights"], reference))
    if missing := [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind is not each.VAR_POSITIONAL and each.name not in values
    ]:
        raise ModelError(
            f"The model factory {reference} needs the option {missing[0]}; give it with --model-option "
            f"{missing[0]}=VALUE, or as model.options.{missing[0]}."
        )


def _unknown_option(name: str, taken: list[str], reference: str) -> str:
    if name == "weights":
        return f"The model factory {reference} takes no weights; leave model.weights (--weights) out."
    nearest = difflib.get_close_matches(name, taken, n=1)
    tip = f"did you mean {nearest[0]}?" if nearest else f"it takes {', '.join(taken) or 'none'}."
    return f"The model factory {reference} takes no option {name}; {tip}"
