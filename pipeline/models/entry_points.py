"""The models that installed packages register, as entry points of the group `htc_batch.models`: a name, a factory."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from htc_model.config import PRESETS
from pipeline.errors import ModelError
from pipeline.job_spec.model_reference import ENTRY_POINT_GROUP, registered_factories
from pipeline.models.foreign_code import is_ctrl_c, raised

# What a spec's `model.weights` may say instead of naming a file.
_WEIGHTS_NAMES = ("demo", "coco", "untrained")


@dataclass(frozen=True)
class RegisteredModel:
    """A model that a package registers.

    name: for `--model`. factory: "package.module:function". package: the distribution and its version.
    problem: why it cannot be used, one sentence; "" where it can.
    """

    name: str
    factory: str
    package: str
    problem: str


def list_registered() -> list[RegisteredModel]:
    """Return the registered models by name; each is imported, and one that cannot be says why."""
    found = []
    for name, entry in registered_factories().items():
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        problem = "it has the name of a preset, which comes first" if name in PRESETS else ""
        if not problem:
            try:
                load_registered(name)
            except ModelError as error:
                problem = str(error)
        found.append(RegisteredModel(name, entry.value, package, problem))
    return found


def load_registered(name: str) -> Callable[..., object]:
    """Import the factory that a package registers under a name.

    Raises:
        ModelError: there is none, or it cannot be imported; the message names the package.
    """
    registered = registered_factories()
    if name not in registered:
        if name in _WEIGHTS_NAMES:
            raise ModelError(
                f"{name} is the name of weights, and of no model: give it with --weights {name}, or as model.weights."
            )
        nearest = difflib.get_close_matches(name, [*registered, *PRESETS], n=1)
        tip = f"; did you mean {nearest[0]}?" if nearest else "; `htc model list` shows what there is."
        raise ModelError(f"No installed package registers a model {name!r} ({ENTRY_POINT_GROUP}){tip}")
    entry = registered[name]
    package = entry.dist.name if entry.dist is not None else entry.value
    try:
        factory = entry.load()
    except ModuleNotFoundError as error:
        raise ModelError(
            f"The model {name} of the package {package} needs the package {error.name}, which is not installed here; "
            f"install it: pip install {(error.name or '').partition('.')[0]}"
        ) from error
    except BaseException as error:  # the boundary of another's module, which may call sys.exit
        if is_ctrl_c(error):
            raise
        raise ModelError(f"The model {name} of the package {package} cannot be imported: {raised(error)}.") from error
    if not callable(factory):
        raise ModelError(
            f"The model {name} of the package {package} is no factory: {entry.value} is of type "
            f"{type(factory).__name__}."
        )
    loaded: Callable[..., object] = factory
    return loaded
