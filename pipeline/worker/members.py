"""The members of an ensemble in a worker: loaded here, or run in processes of their own behind the same steps."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htc_model.config import ModelConfig, ModelConfigError
from htc_model.finite import NonFiniteError
from htc_model.inference.ensemble import Answer, EnsembleModel, LocalMember, Member
from htc_model.inference.precision import PrecisionChoice
from htc_model.inference.views import Proposals, ScoredBoxes
from htc_model.network.detector import HTC
from htc_model.preprocess import upload_pixels
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from pipeline.weights.cache import resolve_weights
from pipeline.weights.fingerprint import resolve_config
from pipeline.worker.memory_budget import check_on_device
from pipeline.worker.segmenter import load_model, pick_device, prepare_for_cpu, settle_precision

if TYPE_CHECKING:
    from pipeline.job_spec.model import ModelSection

log = logging.getLogger(__name__)

T = TypeVar("T")
Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class LoadedMember:
    """A member, ready; precision: what its network computes in. device: the kind of it."""

    member: Member
    precision: PrecisionChoice
    device: str


OpenMembers = Callable[["ModelSection"], Sequence[LoadedMember]]
"""Starts the members of a section in processes of their own; raises as `load_member`."""


def load_member(section: "ModelSection", storage: Storage | None, device: torch.device) -> LoadedMember:
    """Load one network into this process, as it runs fastest on the device.

    Args:
        section: of one network.

    Raises:
        WeightsUnavailableError: the weights are not available.
        WeightsError: the weights are not of this preset, or not weights.
        ModelConfigError: it is no network of the presets.
    """
    precision = settle_precision(section, device, storage)
    model = load_model(section, storage)
    if device.type == "cpu":
        model = prepare_for_cpu(model, precision)
    if not isinstance(model, HTC):
        raise ModelConfigError(
            f"{section.preset} cannot be a member of an ensemble: its heads cannot be run at given boxes."
        )
    member = LocalMember(model.to(device), precision=precision.precision)
    return LoadedMember(member, precision, device.type)


def load_ensemble(
    section: "ModelSection",
    storage: Storage | None,
    device: torch.device,
    *,
    open_members: OpenMembers | None = None,
) -> tuple[EnsembleModel, PrecisionChoice]:
    """Load an ensemble, into this process or where `open_members` starts its members.

    Returns:
        The model, and what its networks compute in.

    Raises:
        as `load_member`; ModelConfigError also where the members do not go together.
    """
    ensemble = section.ensemble
    if ensemble is None:
        raise ModelConfigError("the section names no ensemble")
    if open_members is None or not ensemble.spread:
        loaded: Sequence[LoadedMember] = [load_member(member, storage, device) for member in section.members]
    else:
        loaded = open_members(section)
    names = ensemble.labels
    model = EnsembleModel(
        [each.member for each in loaded],
        votes=[member.weight for member in ensemble.members],
        fusion=ensemble.fusion,  # type: ignore[arg-type]
        suppression=section.suppression if section.suppression != "hard" else "soft_gaussian",
        names=names,
    )
    if any(each.device != device.type for each in loaded):
        model.computes_on = loaded[0].device
    return model, _joint_precision(loaded, names)


def _joint_precision(loaded: Sequence[LoadedMember], names: Sequence[str]) -> PrecisionChoice:
    """Return the members' choice where they have the same; else one that names each, with nothing done around them."""
    choices = [each.precision for each in loaded]
    if len(set(choices)) == 1:
        return choices[0]
    reasons = "; ".join(
        f"{name}: {choice.precision}, {choice.reason}" for name, choice in zip(names, choices, strict=True)
    )
    return PrecisionChoice("fp32", reasons)


# What passes between a worker and a member in another process: arrays, and errors as values.


@dataclass(frozen=True)
class MemberReady:
    """A member's process has its network; device: the kind of it."""

    config: ModelConfig
    precision: PrecisionChoice
    device: str


@dataclass(frozen=True)
class MemberProblem:
    """Why a step has no result: "memory" or "numbers", with the error's message."""

    kind: str
    message: str


class MemberHost:
    """A member's side in its own process; its steps take and return arrays."""

    def __init__(self, section: "ModelSection", storage: StorageSection, *, cpus: float, gpus: float) -> None:
        """Prepare; nothing is loaded yet, so that nothing can fail.

        Args:
            section: of one network. storage: how its weights are reached.
            cpus, gpus: what is reserved for this process.
        """
        self._section = section
        self._storage = storage
        self._cpus, self._gpus = cpus, gpus
        self._device = pick_device(gpus)
        self._member: Member | None = None

    def start(self) -> MemberReady:
        """Load the network; errors as for `load_member`, and MemoryBudgetError where it does not fit."""
        torch.set_num_threads(max(1, int(self._cpus)))
        storage = Storage(self._storage)
        config = resolve_config(self._section, resolve_weights(self._section, storage))
        check_on_device(self._section, [config], self._device, gpus=self._gpus)
        loaded = load_member(self._section, storage, self._device)
        self._member = loaded.member
        return MemberReady(loaded.member.config, loaded.precision, loaded.device)

    def propose(self, images: Arrays, at_once: int, keeps_features: bool) -> Any:
        """See `Member.propose`: boxes and scores of each image, or a problem."""
        self.forget()

        def begin() -> Answer[list[Proposals]]:
            pixels = [upload_pixels(image, self._device) for image in images]
            return self._own.propose(pixels, at_once=at_once, keeps_features=keeps_features)

        return self._answer(begin, _pairs_as_arrays)

    def detect(self, proposals: Arrays) -> Any:
        """See `Member.detect`."""
        return self._answer(lambda: self._own.detect(self._tensors(proposals)), _pairs_as_arrays)

    def segment(self, boxes: Arrays, labels: Arrays) -> Any:
        """See `Member.segment`."""
        return self._answer(lambda: self._own.segment(self._tensors(boxes), self._tensors(labels)), _as_arrays)

    def forget(self) -> None:
        """Free what is kept of the images."""
        self._own.forget()

    @property
    def _own(self) -> Member:
        if self._member is None:
            raise RuntimeError("a member of an ensemble was used before it was loaded")
        return self._member

    def _tensors(self, arrays: Arrays) -> list[Tensor]:
        return [torch.tensor(each, device=self._device) for each in arrays]

    def _answer(self, begin: Callable[[], Answer[T]], pack: Callable[[T], Any]) -> Any:
        try:
            return pack(begin()())
        except NonFiniteError as error:
            return MemberProblem("numbers", str(error))
        except torch.OutOfMemoryError as error:
            problem = MemberProblem("memory", str(error))
        # Outside the handler, whose traceback would keep the tensors alive.
        self.forget()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return problem


class Calls(Protocol):
    """How a worker reaches one member's process."""

    def call(self, step: str, *arguments: Any) -> Answer[Any]:
        """Begin a step of `MemberHost`; the answer waits for its result.

        Raises (the answer):
            DeviceLostError: the member's process is gone.
        """

    def share(self, images: Sequence[Tensor]) -> Any:
        """Return what a step takes in the place of these images, which several members get."""


class RemoteMember:
    """A member in another process.

    Args:
        calls: reach its `MemberHost`, which has started.
        config: of its network.
    """

    def __init__(self, calls: Calls, config: ModelConfig) -> None:
        self._calls = calls
        self._config = config

    @property
    def config(self) -> ModelConfig:
        """Its network's."""
        return self._config

    def place(self, device: torch.device) -> None:
        """Do nothing: the network is on its own process's device."""

    def propose(self, images: Sequence[Tensor], *, at_once: int, keeps_features: bool) -> Answer[list[Proposals]]:
        """Begin with images."""
        shared = self._calls.share(images)
        pending = self._calls.call("propose", shared, at_once, keeps_features)
        return partial(_pairs, pending, images[0].device)

    def detect(self, proposals: Sequence[Tensor]) -> Answer[list[ScoredBoxes]]:
        """Refine and score."""
        return partial(_pairs, self._calls.call("detect", _as_arrays(proposals)), proposals[0].device)

    def segment(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Answer[list[Tensor]]:
        """Segment."""
        return partial(_singles, self._calls.call("segment", _as_arrays(boxes), _as_arrays(labels)), boxes[0].device)

    def forget(self) -> None:
        """Have it free what it keeps, without waiting."""
        self._calls.call("forget")


def _as_arrays(tensors: Sequence[Tensor]) -> Arrays:
    return [each.cpu().numpy() for each in tensors]


def _pairs_as_arrays(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return [(one.cpu().numpy(), other.cpu().numpy()) for one, other in pairs]


def _pairs(pending: Answer[Any], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    return [(_tensor(one, device), _tensor(other, device)) for one, other in _result(pending)]


def _singles(pending: Answer[Any], device: torch.device) -> list[Tensor]:
    return [_tensor(each, device) for each in _result(pending)]


def _result(pending: Answer[Any]) -> Any:
    result = pending()
    if not isinstance(result, MemberProblem):
        return result
    if result.kind == "numbers":
        raise NonFiniteError(result.message)
    raise torch.OutOfMemoryError(result.message)


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    # Copied: what comes from another process may not be written.
    return torch.from_numpy(np.array(array)).to(device)
