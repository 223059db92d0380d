"""A worker's model as its spec has it: one network, one with views, an ensemble, a factory's, or the caller's own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from htc_model.config import ModelConfigError
from htc_model.inference.precision import PrecisionChoice
from pipeline.job_spec.map_tables import check_has_maps
from pipeline.models.checked import CheckedModel
from pipeline.weights.cache import resolve_weights
from pipeline.weights.fingerprint import resolve_config
from pipeline.worker.any_model import load_any_model
from pipeline.worker.fast_path import SegmentationModel, WholeImageModel
from pipeline.worker.memory_budget import check_on_device, is_budgeted
from pipeline.worker.segmenter import LoadModel, augment, prepare_for_cpu, settle_precision

if TYPE_CHECKING:
    from pipeline.job_spec.model import ModelSection
    from pipeline.storage.storage import Storage
    from pipeline.worker.members import OpenMembers


def open_model(
    section: "ModelSection",
    storage: "Storage | None",
    device: torch.device,
    *,
    gpus: float = 0.0,
    load: LoadModel | None = None,
    folders: Sequence[str] = (),
    open_members: "OpenMembers | None" = None,
) -> tuple[SegmentationModel | WholeImageModel | CheckedModel, PrecisionChoice]:
    """Load a spec's model onto the device, or start its members elsewhere.

    Args:
        gpus: what is reserved for this process.
        load: loads the caller's own model in the place of the section's.
        folders: where the module of a factory is searched, see `pipeline.models.factory.find_factory`.
        open_members: starts the members of a spread ensemble.

    Returns:
        The model, and what it computes in.

    Raises:
        SpecError: the network cannot fill the tables of maps.
        ModelError: the factory is not found or fails, or the model does not keep to the protocol.
        WeightsUnavailableError: the weights are not available.
        WeightsError: the weights are not of this preset, or not weights.
        ModelConfigError: the members of an ensemble do not go together, or the model cannot do what the section asks.
        MemoryBudgetError: a view, or a member of an ensemble, does not fit the device's memory.
    """
    is_elsewhere = section.ensemble is not None and section.ensemble.spread and open_members is not None
    if load is None and is_budgeted(section) and not is_elsewhere:
        configs = [resolve_config(member, resolve_weights(member, storage)) for member in section.members]
        check_on_device(section, configs, device, gpus=gpus)
    if section.ensemble is not None:
        if load is not None:
            raise ModelConfigError("A model of your own (load_model) and an ensemble exclude each other; keep one.")
        if len(section.members) > 1 or section.ensemble.fusion == "soft_nms":
            from pipeline.worker.members import load_ensemble

            return load_ensemble(section, storage, device, open_members=open_members)
        # Alone, a network needs no votes.
        (section,) = section.members
    model = load_any_model(section, storage, load_model=load, folders=folders)
    if section.map_tables and isinstance(model, CheckedModel):
        raise ModelConfigError(
            f"model.{section.map_tables[0]} is for networks of the presets, and {model.name} is none."
        )
    if not isinstance(model, CheckedModel):
        check_has_maps(model.config, section.map_tables)
    is_own = load is not None or section.factory is not None
    precision = settle_precision(section, device, storage, is_callers_model=is_own)
    if isinstance(model, torch.nn.Module | CheckedModel):
        model.to(device)
    if device.type == "cpu" and not isinstance(model, CheckedModel):
        model = prepare_for_cpu(model, precision)
    return augment(model, section), precision
