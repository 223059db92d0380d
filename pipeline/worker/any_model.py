"""Loads what a spec names: a preset's network, the model of a factory, or that of the caller's own `load_model`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from htc_model.config import ModelConfig
from pipeline.models.checked import CheckedModel
from pipeline.models.factory import make_model
from pipeline.models.load_function import call_function, function_name
from pipeline.worker.callers_model import CallersModel
from pipeline.worker.segmenter import load_model as load_preset_model

if TYPE_CHECKING:
    from pipeline.job_spec.model import ModelSection
    from pipeline.storage.storage import Storage
    from pipeline.worker.fast_path import SegmentationModel
    from pipeline.worker.segmenter import LoadModel


def load_any_model(
    section: "ModelSection",
    storage: "Storage | None" = None,
    *,
    load_model: "LoadModel | None" = None,
    folders: Sequence[str] = (),
) -> "SegmentationModel | CheckedModel":
    """Load a model, on the CPU, in evaluation mode.

    Args:
        load_model: the caller's own, in the place of what the section names.
        folders: where the module of a factory is searched, see `pipeline.models.factory.find_factory`.

    Raises:
        ModelError: the factory is not found or fails, the caller's `load_model` raises, or the model does not keep to
            the protocol.
        WeightsUnavailableError: the weights are not available.
        WeightsError: the weights are not of this preset, or not weights.
    """
    if load_model is None:
        if section.factory is not None:
            return make_model(section, storage, folders=folders)
        return load_preset_model(section, storage)
    model = call_function(load_model, section)
    if isinstance(getattr(model, "config", None), ModelConfig):
        return cast("SegmentationModel", model)
    name = load_model.name if isinstance(load_model, CallersModel) else function_name(load_model)
    return CheckedModel(
        model,
        who=f"load_model ({name}) returned",
        score_threshold=section.score_threshold,
        max_detections=section.max_detections,
    )
