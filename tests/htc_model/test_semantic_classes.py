"""What the channels of a semantic branch mean."""

from dataclasses import replace

import pytest

from htc_model.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from htc_model.coco_stuff_classes import COCO_STUFF_CLASSES
from htc_model.config import ModelConfig, ModelConfigError, config_sha256, load_preset
from htc_model.semantic_classes import semantic_classes

PUBLISHED = load_preset("htc_r50_fpn")


def own(classes: tuple[str, ...], ids: tuple[int, ...], *, channels: int, names: tuple[str, ...] = ()) -> ModelConfig:
    return replace(PUBLISHED, classes=classes, category_ids=ids, semantic_classes=channels, semantic_names=names)


def described(config: ModelConfig) -> list[tuple[int, str, str]]:
    return [(each.class_id, each.name, each.kind) for each in semantic_classes(config)]


def test_published_channels_are_those_of_coco_stuff() -> None:
    """Channel i is the class of id i + 1, and the last one was never a target."""
    found = semantic_classes(PUBLISHED)
    assert len(found) == PUBLISHED.semantic_classes == len(COCO_STUFF_CLASSES) + 1
    assert [each.class_id for each in found] == [*range(1, 183), 0]
    assert [found[number - 1].name for number in COCO_CATEGORY_IDS] == list(COCO_CLASSES)
    assert [each.kind for each in found] == ["thing"] * 91 + ["stuff"] * 91 + ["rest"]
    # Two at the borders of labels.txt, and one that any photo has.
    assert [(found[at].class_id, found[at].name) for at in (90, 91, 156, 181)] == [
        *((91, "hair brush"), (92, "banner"), (157, "sky-other"), (182, "wood"))
    ]


def test_the_bundled_model_knows_persons_and_the_rest() -> None:
    assert described(own(("person",), (1,), channels=2)) == [(1, "person", "thing"), (0, "other", "rest")]


def test_labels_with_names_are_things_where_the_network_finds_them() -> None:
    config = own(("cup", "bag"), (5, 9), channels=4, names=("sky", "bag", "road", "other"))
    assert described(config) == [(1, "sky", "stuff"), (9, "bag", "thing"), (3, "road", "stuff"), (0, "other", "rest")]


def test_ids_are_unique() -> None:
    """Where a label's own id is a thing's, stuff comes behind the things."""
    config = own(("cup", "other"), (0, 1), channels=4, names=("sky", "road", "cup", "unlabeled"))
    assert described(config) == [
        (2, "sky", "stuff"),
        (3, "road", "stuff"),
        (0, "cup", "thing"),
        (6, "unlabeled", "rest"),
    ]
    assert described(own(("other",), (1,), channels=2)) == [(1, "other", "thing"), (0, "other", "rest")]


def test_labels_of_unknown_maps_have_numbers() -> None:
    """Also 183 of them, where an id of COCO-Stuff is something else here."""
    assert described(own(("cup",), (1,), channels=3))[1:] == [(3, "label 1", "stuff"), (4, "label 2", "stuff")]
    assert semantic_classes(own(("cup",), (1,), channels=183))[156].name == "label 156"


def test_names_are_one_per_channel_and_leave_older_fingerprints_alone() -> None:
    with pytest.raises(ModelConfigError, match="4 semantic classes but 3 names"):
        own(("cup",), (1,), channels=4, names=("a", "b", "c"))
    assert config_sha256(own(("cup",), (1,), channels=2)) != config_sha256(
        own(("cup",), (1,), channels=2, names=("cup", "other"))
    )
