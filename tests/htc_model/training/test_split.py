"""Images are held out by class, and always the same ones."""

import pytest

from htc_model.training.annotations import AnnotationError
from htc_model.training.split import choose_validation

IMAGES = {f"{number}.jpg": {0} if number % 10 else {0, 1} for number in range(100)} | {"empty.jpg": set()}


def test_each_class_has_its_share() -> None:
    chosen = choose_validation(IMAGES, 0.2, seed=0)
    assert sum(1 in IMAGES[name] for name in chosen) == 2
    assert sum(0 in IMAGES[name] for name in chosen) == 20


def test_the_choice_depends_on_names_and_seed_alone() -> None:
    chosen = choose_validation(IMAGES, 0.2, seed=0)
    assert choose_validation(dict(reversed(IMAGES.items())), 0.2, seed=0) == chosen
    assert choose_validation(IMAGES, 0.2, seed=1) != chosen


def test_a_class_on_two_images_is_held_out_once_and_one_on_a_single_image_is_trained_on() -> None:
    images = {f"{number}.jpg": {0} for number in range(20)} | {"a.jpg": {1}, "b.jpg": {1}, "c.jpg": {2}}
    chosen = choose_validation(images, 0.05, seed=0)
    assert len({"a.jpg", "b.jpg"} & chosen) == 1
    assert "c.jpg" not in chosen


def test_images_without_objects_are_split_by_their_share() -> None:
    images = {f"{number}.jpg": {0} for number in range(10)} | {f"e{number}.jpg": set() for number in range(10)}
    assert sum(not images[name] for name in choose_validation(images, 0.3, seed=0)) == 3


@pytest.mark.parametrize(("images", "share"), [({"a.jpg": {0}}, 0.1), ({"a.jpg": {0}, "b.jpg": {0}}, 0.99)])
def test_nothing_to_train_on_is_refused(images: dict, share: float) -> None:
    with pytest.raises(AnnotationError, match="val_share"):
        choose_validation(images, share, seed=0)
