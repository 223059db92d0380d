"""The adapters: whole libraries of models behind one prefix, "torchvision:NAME" and "transformers:NAME"."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pipeline.errors import ModelError
from pipeline.job_spec.model_reference import adapter_of
from pipeline.models.protocol import InstanceModel


class AdapterModule(Protocol):
    """What the module of an adapter has, as functions at its top."""

    def make(self, name: str, *, weights: str | Path = "default", **options: Any) -> InstanceModel:
        """Build a model of the library, on the CPU.

        Args:
            name: what follows the prefix.
            weights: "default", "untrained" (the same values each time), or a local file or folder.
            options: of the spec.

        Raises:
            ModelError: there is no such model, its weights cannot be had or do not fit, or an option is wrong.
        """

    def check_name(self, name: str) -> None:
        """Raise ModelError if there is no model of that name; builds and fetches nothing."""

    def default_files(self, name: str) -> Sequence[Path]:
        """Fetch the library's own weights of a model, unless they are here; return the files, for the fingerprint.

        Raises:
            ModelError: there are none, or they cannot be fetched.
        """

    def is_default_here(self, name: str) -> bool:
        """Return whether `default_files` would have nothing to fetch."""

    def settings_files(self, name: str) -> Sequence[Path]:
        """Return the files beside the weights that the model is made from, for the fingerprint; fetched if necessary.

        Raises:
            ModelError: they cannot be fetched, or one is missing.
        """

    def list_models(self) -> Sequence[tuple[str, str]]:
        """Return the names of the library's models, each with a note such as "boxes only"."""


@dataclass(frozen=True)
class Adapter:
    """One adapter.

    module: that has the functions of `AdapterModule`. package: which it needs. extra: of this program, that installs
        the package; "" where it is installed in any case.
    """

    prefix: str
    module: str
    package: str
    extra: str

    def load(self) -> AdapterModule:
        """Import the adapter.

        Raises:
            ModelError: its package is not installed.
        """
        try:
            return cast("AdapterModule", importlib.import_module(self.module))
        except ModuleNotFoundError as error:
            way = f"pip install 'htc-batch[{self.extra}]'" if self.extra else f"pip install {self.package}"
            raise ModelError(
                f"Models of {self.prefix} need the package {error.name}, which is not installed here: {way}"
            ) from error


ADAPTERS = {
    each.prefix: each
    for each in (
        Adapter("torchvision", "pipeline.models.torchvision_models", "torchvision", ""),
        Adapter("transformers", "pipeline.models.transformers_models", "transformers", "transformers"),
    )
}


def find_adapter(reference: str) -> tuple[Adapter, str] | None:
    """Return the adapter of "torchvision:NAME" and the name; None for a factory of another kind."""
    split = adapter_of(reference)
    return None if split is None else (ADAPTERS[split[0]], split[1])
