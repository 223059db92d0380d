"""Classes of several networks joined by name."""

from dataclasses import replace

import pytest

from htc_model.class_maps import ensemble_config, join_classes
from htc_model.config import ModelConfig, ModelConfigError, load_preset


def knowing(name: str, *classes: tuple[str, int], has_masks: bool = True) -> ModelConfig:
    return replace(
        load_preset("htc_lite0_fpn"),
        name=name,
        classes=tuple(each for each, _ in classes),
        category_ids=tuple(category_id for _, category_id in classes),
        has_masks=has_masks,
        semantic=has_masks,
    )


CAT, DOG, COW = ("cat", 17), ("dog", 18), ("cow", 21)


def test_classes_of_other_orders_are_joined_by_name() -> None:
    joined = join_classes([knowing("a", CAT, DOG), knowing("b", COW, DOG)])
    assert joined.classes == ("cat", "dog", "cow")
    assert joined.category_ids == (17, 18, 21)
    assert joined.own_labels == ((0, 1, None), (None, 1, 0))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([("dog", 5), CAT], ["'dog'", "18 in first", "5 in second"]),
        ([("horse", 17), DOG], ["category id 17", "'cat' in first", "'horse' in second"]),
        ([COW, ("horse", 19)], ["second (cow, horse)", "no class", "first"]),
        ([CAT, CAT], ["second", "'cat' twice"]),
    ],
)
def test_what_does_not_go_together_is_named(others: list[tuple[str, int]], words: list[str]) -> None:
    with pytest.raises(ModelConfigError) as caught:
        join_classes([knowing("first", CAT, DOG), knowing("second", *others)])
    assert all(word in str(caught.value) for word in words)
    assert str(caught.value).count(". ") == 0


def test_an_ensembles_configuration_has_the_classes_of_all() -> None:
    config = ensemble_config([knowing("a", CAT, has_masks=False), knowing("b", CAT, DOG)])
    assert (config.name, config.classes, config.has_masks) == ("a+b", ("cat", "dog"), True)


def test_a_class_without_masks_beside_classes_with_masks_is_refused() -> None:
    with pytest.raises(ModelConfigError, match=r"'cat' is known only by a, without masks"):
        ensemble_config([knowing("a", CAT, DOG, has_masks=False), knowing("b", DOG)])
