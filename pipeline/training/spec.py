"""The training spec with URIs of any storage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, model_validator

from htc_model.training.spec import INITIAL_WORDS, TrainingSpec
from pipeline.job_spec.messages import suggestion
from pipeline.job_spec.parsing import read_spec
from pipeline.storage.config import StorageSection, Uri

_URI: TypeAdapter[str] = TypeAdapter(Uri)
_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")


class StoredTrainingSpec(TrainingSpec):
    """A training run and how its annotations, images and initial weights are reached.

    storage: see `StorageSection`; it does not decide what is computed, so a run may be resumed with another one.
    """

    storage: StorageSection = StorageSection()

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        # The weights file contains the spec, which must not contain credentials.
        for section in (*self.train, *self.evaluate):
            for uri in (section.annotations, section.images, section.stuff):
                _URI.validate_python(uri or ".")
        _URI.validate_python(self.model.initial)
        return self

    @model_validator(mode="after")
    def _check_initial(self) -> Self:
        initial = self.model.initial
        if initial in INITIAL_WORDS or "/" in initial or initial.endswith(_WEIGHTS_SUFFIXES) or Path(initial).exists():
            return self
        raise ValueError(
            f"model.initial must be imagenet, demo, coco, none, or the path of a .safetensors, .pth or .pt file, not "
            f"{initial!r}{suggestion(initial, INITIAL_WORDS, '').rstrip('.')}"
        )


def load_training_spec(path: str | Path | None, overrides: Mapping[str, object] | None = None) -> StoredTrainingSpec:
    """Read a YAML training spec and apply the flags to it.

    Args:
        path: a YAML file, local or remote; None when the flags contain everything.
        overrides: values by dotted key, `{"model.preset": "htc_lite0_fpn"}`; None means that the flag is not given.

    Raises:
        SpecError: one sentence per problem, all problems at once.
    """
    return read_spec(StoredTrainingSpec, path, overrides, name="training spec", flags={"output": "--output"})


def without_storage(spec: StoredTrainingSpec) -> TrainingSpec:
    """Return the part that decides the result; checkpoint and weights contain nothing else."""
    return TrainingSpec.model_validate(spec.model_dump(exclude={"storage"}))
