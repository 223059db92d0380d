"""Members of an ensemble in processes of their own: the same bits as here, and errors as values."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from htc_model.config import ModelConfigError
from htc_model.finite import NonFiniteError
from htc_model.inference.ensemble import EnsembleModel
from pipeline.job_spec.job import load_spec
from pipeline.job_spec.model import ModelSection
from pipeline.storage.config import StorageSection
from pipeline.worker.error_boundaries import MemberLostError
from pipeline.worker.members import LoadedMember, MemberHost, RemoteMember, load_ensemble
from pipeline.worker.open_model import open_model
from pipeline.worker.segmenter import DecodedImage, Segmenter
from tests.htc_model.inference.test_augmented import assert_equal, photo

CPU = torch.device("cpu")


def section_of(*members: str, **model: object) -> ModelSection:
    keys = {f"model.{key}": value for key, value in model.items()}
    values = {"input.uri": "in", "output.uri": "out", "model.ensemble.members": list(members), **keys}
    return load_spec(None, values).model


TWO = ("htc_lite0_fpn=untrained", "demo*2")


class Here:
    """Calls a host in this process with read-only arrays, as they come out of Ray's store."""

    def __init__(self, host: MemberHost) -> None:
        self._host = host
        self.fails: dict[str, Exception] = {}

    def call(self, step: str, *arguments: Any) -> Callable[[], Any]:
        def answer() -> Any:
            if step in self.fails:
                raise self.fails[step]
            return getattr(self._host, step)(*arguments)

        return (lambda: None) if step == "forget" else answer

    def share(self, images: Sequence[Tensor]) -> list[np.ndarray]:
        arrays = [each.numpy().copy() for each in images]
        for each in arrays:
            each.flags.writeable = False
        return arrays


def opened(section: ModelSection, calls: list[Here]) -> list[LoadedMember]:
    loaded = []
    for member in section.members:
        host = MemberHost(member, StorageSection(), cpus=1, gpus=0)
        ready = host.start()
        calls.append(Here(host))
        loaded.append(LoadedMember(RemoteMember(calls[-1], ready.config), ready.precision, ready.device))
    return loaded


@pytest.mark.parametrize("model", [{}, {"augment": "flip"}])
def test_members_elsewhere_give_the_same_bits(model: dict[str, object]) -> None:
    here, _ = load_ensemble(section_of(*TWO, **model), None, CPU)
    calls: list[Here] = []
    spread = section_of(*TWO, **model, **{"ensemble.spread": True})
    there, _ = load_ensemble(spread, None, CPU, open_members=lambda each: opened(each, calls))
    assert len(calls) == 2
    images = [photo(), photo(30)]
    for one, other in zip(there.infer_images(images), here.infer_images(images), strict=True):
        assert_equal(one, other)


def remote() -> tuple[EnsembleModel, list[Here]]:
    calls: list[Here] = []
    loaded = opened(section_of(*TWO), calls)
    return EnsembleModel([each.member for each in loaded], names=["first", "second"]), calls


def test_errors_of_a_member_elsewhere_are_those_of_one_here() -> None:
    model, calls = remote()
    host = calls[1]._host

    def fail(error: Exception) -> Callable[..., Any]:
        def step(*arguments: object, **options: object) -> Any:
            raise error

        return step

    own = host._own
    own.detect = fail(NonFiniteError("scores are not finite"))  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"^second: scores are not finite"):
        model.infer_images([photo()])
    own.detect = fail(torch.OutOfMemoryError("full"))  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        model.infer_images([photo()])


def test_a_member_that_is_gone_ends_the_worker_and_fails_no_image() -> None:
    model, calls = remote()
    calls[0].fails["segment"] = MemberLostError("the member first of the ensemble is gone")
    segmenter = Segmenter(model, CPU, batch_size=1)
    with pytest.raises(MemberLostError, match="first"):
        list(segmenter.segment([DecodedImage(0, "a.jpg", photo().numpy())]))


def test_one_member_alone_is_the_plain_network() -> None:
    alone, _ = open_model(section_of("demo"), None, CPU)
    plain, _ = open_model(load_spec(None, {"input.uri": "in", "output.uri": "out"}).model, None, CPU)
    assert type(alone) is type(plain)
    assert alone.config == plain.config


def test_a_model_of_ones_own_is_no_ensemble() -> None:
    with pytest.raises(ModelConfigError, match="exclude each other"):
        open_model(section_of(*TWO), None, CPU, load=lambda section: pytest.fail("loaded"))


def test_a_segmenter_takes_batches_of_an_ensemble() -> None:
    model, _ = open_model(section_of(*TWO), None, CPU)
    segmenter = Segmenter(model, CPU, batch_size=2)
    images = [DecodedImage(place, f"{place}.jpg", photo(place).numpy()) for place in (0, 30)]
    assert segmenter.padded_shape(images[0]) == segmenter.padded_shape(images[1])
    found = list(segmenter.segment(images))
    assert [image.position for image, _ in found] == [0, 30]
