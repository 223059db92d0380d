"""Ensembles: a network with itself gives its own detections; others are averaged where they know."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from htc_model.config import ModelConfig, ModelConfigError
from htc_model.finite import NonFiniteError
from htc_model.inference import views
from htc_model.inference.augmented import AugmentedModel
from htc_model.inference.ensemble import Answer, EnsembleModel, LocalMember
from htc_model.inference.fusion import average_votes, merge_proposals
from htc_model.inference.views import ScoredBoxes
from htc_model.network.detector import HTC
from htc_model.preprocess import assemble_batch
from tests.htc_model.inference.test_augmented import FLIP, SYSTEMS, assert_equal, mirrored, photo
from tests.support.builders.networks import assert_wellformed, untrained_model


def other_of(config: ModelConfig, *, scale: float = 0.03, **changes: Any) -> HTC:
    """Build a network with other weights."""
    network = HTC(replace(config, **changes))
    network.load_state_dict(untrained_model(replace(config, **changes)).state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.roi_head.parameters():
            parameter.add_(scale * parameter.std().nan_to_num(0) * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize(
    ("system", "votes"), [*((system, (1.0, 1.0)) for system in SYSTEMS), ("htc", (1.0,)), ("htc", (1.0, 2.0, 0.3))]
)
def test_a_network_with_itself_gives_its_own_detections_bit_for_bit(system: str, votes: tuple[float, ...]) -> None:
    network = untrained_model(SYSTEMS[system])
    images = [photo(), photo(30)]
    plain = network.infer(assemble_batch(images, network.config))
    found = EnsembleModel([network] * len(votes), votes=votes).infer_images(images)
    for one, other in zip(found, plain, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("fusion", ["nms", "soft_nms", "wbf"])
def test_with_views_one_member_is_the_augmented_network(fusion: Any) -> None:
    config = replace(SYSTEMS["htc"], views=FLIP)
    suppression = "soft_gaussian" if fusion == "soft_nms" else "hard"
    network = untrained_model(config)
    wanted = AugmentedModel(untrained_model(replace(config, suppression=suppression))).infer_images([photo()])
    assert_equal(EnsembleModel([network], fusion=fusion).infer_images([photo()])[0], wanted[0])


def test_a_mirrored_photo_gives_the_mirrored_detections_of_two_members() -> None:
    config = replace(SYSTEMS["mask_rcnn"], views=FLIP)
    model = EnsembleModel([untrained_model(config), other_of(config)])
    (wanted,) = model.infer_images([photo()])
    (found,) = model.infer_images([photo().flip(1)])
    assert_equal(found, mirrored(wanted))


def test_two_networks_lie_between_the_two_and_see_each_image_in_their_own_size() -> None:
    first = untrained_model(SYSTEMS["htc"])
    second = other_of(SYSTEMS["htc"], resize=replace(SYSTEMS["htc"].resize, long_side=200, short_side=150))
    model = EnsembleModel([first, second])
    (found,) = model.infer_images([photo()])
    assert_wellformed(found, model.config)
    alone = [network.infer(assemble_batch([photo()], network.config))[0] for network in (first, second)]
    for each in alone:
        assert not torch.equal(found.scores, each.scores)
    low, high = min(each.scores[0] for each in alone), max(each.scores[0] for each in alone)
    assert 0.5 * low <= found.scores[0] <= 1.5 * high


def test_weighted_boxes_fusion_of_a_network_with_itself_moves_nothing() -> None:
    network = untrained_model(SYSTEMS["cascade"])
    (wanted,) = network.infer(assemble_batch([photo()], network.config))
    (found,) = EnsembleModel([network, network], fusion="wbf").infer_images([photo()])
    same = (box_iou(found.boxes_xyxy, wanted.boxes_xyxy) > 0.99) & (found.labels[:, None] == wanted.labels)
    assert same.any(dim=1).float().mean() > 0.9
    torch.testing.assert_close(found.scores[:5], wanted.scores[:5], atol=1e-5, rtol=0)


def test_weighted_boxes_fusion_does_not_charge_a_class_for_members_that_cannot_know_it() -> None:
    config = replace(SYSTEMS["mask_rcnn"], classes=("cat", "dog"), category_ids=(1, 2))
    both = untrained_model(config)
    one = untrained_model(replace(config, classes=("dog",), category_ids=(2,)))
    model = EnsembleModel([both, one], fusion="wbf")
    (found,) = model.infer_images([photo()])
    assert_wellformed(found, model.config)
    (alone,) = both.infer(assemble_batch([photo()], config))
    best = alone.scores[alone.labels == 0].max()
    torch.testing.assert_close(found.scores[found.labels == 0].max(), best, atol=1e-5, rtol=0)


class FixedScores(LocalMember):
    """Scores every proposal the same."""

    def __init__(self, network: HTC, scores: Sequence[float]) -> None:
        super().__init__(network)
        self._scores = torch.tensor(scores)

    def detect(self, proposals: Sequence[Tensor]) -> Answer[list[ScoredBoxes]]:
        return lambda: [(each[:, None], self._scores.expand(len(each), -1)) for each in proposals]


def test_a_class_has_the_votes_of_the_members_that_know_it() -> None:
    config = replace(SYSTEMS["cascade"], classes=("cat", "dog"), category_ids=(1, 2), max_detections=2, nms_iou=0.0)
    other = replace(config, classes=("cow", "cat"), category_ids=(3, 1))
    model = EnsembleModel(
        [FixedScores(untrained_model(config), [0.2, 0.3]), FixedScores(untrained_model(other), [0.9, 0.8])],
        votes=[3, 1],
    )
    assert model.config.classes == ("cat", "dog", "cow")
    (found,) = model.infer_images([photo()])
    assert (found.labels[0], found.scores[0]) == (2, pytest.approx(0.9))
    (found,) = EnsembleModel(model.members, votes=[3, 1], names=["a", "b"]).infer_images([photo()])
    scores = average_votes(
        [torch.tensor([[0.2, 0.3, 0.0]]), torch.tensor([[0.8, 0.0, 0.9]])],
        [torch.tensor([True, True, False]), torch.tensor([True, False, True])],
        [3, 1],
    )
    torch.testing.assert_close(scores, torch.tensor([[0.35, 0.3, 0.9]]))


def test_masks_are_the_mean_of_members_with_masks() -> None:
    config = SYSTEMS["cascade"]
    with_masks, without = untrained_model(config), untrained_model(SYSTEMS["boxes_only"])
    (found,) = EnsembleModel([without, with_masks]).infer_images([photo()])
    (wanted,) = with_masks.infer(assemble_batch([photo()], config))
    assert found.mask_probs is not None
    assert wanted.mask_probs is not None
    assert found.mask_probs.shape == (len(found.scores), 28, 28)
    (twice,) = EnsembleModel([with_masks, other_of(config)]).infer_images([photo()])
    assert twice.mask_probs is not None
    assert float(twice.mask_probs.min()) >= 0
    assert float(twice.mask_probs.max()) <= 1


def test_proposals_of_one_network_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9.5], [50, 50, 60, 60]])
    first = boxes, torch.tensor([0.9, 0.8, 0.3])
    kept, scores = merge_proposals([first, first], iou=0.7, limit=10)
    assert torch.equal(kept, boxes)
    assert torch.equal(scores, first[1])
    second = torch.tensor([[0.0, 0, 10, 10.2], [80, 80, 90, 90]]), torch.tensor([0.85, 0.5])
    kept, scores = merge_proposals([first, second], iou=0.7, limit=3)
    assert scores.tolist() == pytest.approx([0.9, 0.8, 0.5])


def test_where_the_features_of_all_members_do_not_fit_those_of_one_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    network = untrained_model(SYSTEMS["htc"])
    model = EnsembleModel([network, other_of(SYSTEMS["htc"])])
    (wanted,) = model.infer_images([photo()])

    def full(self: views._Kept) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(views._Kept, "__iter__", full)
    assert_equal(model.infer_images([photo()])[0], wanted)


def test_a_member_that_computes_no_number_is_named() -> None:
    broken = other_of(SYSTEMS["cascade"])
    with torch.no_grad():
        next(broken.rpn_head.parameters()).fill_(float("nan"))
    model = EnsembleModel([untrained_model(SYSTEMS["cascade"]), broken], names=["good", "broken"])
    with pytest.raises(NonFiniteError, match=r"^broken: "):
        model.infer_images([photo()])


class OwnModel:
    config = SYSTEMS["htc"]
    name = "my own model"


@pytest.mark.parametrize(
    ("members", "options", "words"),
    [
        ([OwnModel()], {}, "my own model cannot be a member"),
        ([], {}, "at least one member"),
        ([untrained_model(SYSTEMS["htc"])], {"votes": [0]}, "more than 0"),
        ([untrained_model(SYSTEMS["htc"])], {"votes": [1, 2]}, "as many votes"),
    ],
)
def test_what_cannot_vote_is_refused(members: Any, options: Any, words: str) -> None:
    with pytest.raises(ModelConfigError, match=words):
        EnsembleModel(members, **options)


def test_without_its_library_weighted_boxes_fusion_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("htc_model.inference.fusion.find_spec", lambda name: None)
    with pytest.raises(ModelConfigError, match=r"ensemble-boxes: pip install"):
        EnsembleModel([untrained_model(SYSTEMS["htc"])], fusion="wbf")


def test_of_no_images_there_are_no_detections() -> None:
    assert EnsembleModel([untrained_model(SYSTEMS["htc"])]).infer_images([]) == []
