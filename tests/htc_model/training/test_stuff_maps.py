"""A data set's own semantic maps: augmented with the image, and the semantic branch's target."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from htc_model.config import config_from_dict, config_to_dict, load_preset
from htc_model.semantic_classes import semantic_classes
from htc_model.training.augment import Augmentation, augment_image, crop_image, flip_image, paste_objects
from htc_model.training.build import build_model_config
from htc_model.training.coco_reader import read_annotations
from htc_model.training.dataset import TrainingDataset
from htc_model.training.samples import build_truth, load_training_image, resize_image
from htc_model.training.spec import ModelSection
from tests.support.builders.training_data import SIDE, draw_image, small_config, small_document, small_spec

GRASS, THING = 17, 3


def draw_stuff(name: str) -> np.ndarray:
    """Label the box as a thing, the rest as grass, and ignore the first row."""
    stuff = np.where(draw_image(name)[..., 0] > 130, THING, GRASS).astype(np.uint8)
    stuff[0] = 255
    return stuff


def annotations(images=1):
    read = read_annotations(small_document(images))
    return replace(read, images=tuple(replace(image, stuff_file=image.file_name) for image in read.images))


@pytest.fixture
def image():
    return load_training_image(annotations().images[0], draw_image, draw_stuff)


def test_the_map_is_the_target_as_it_is(image):
    truth = build_truth(image, small_config(semantic_classes=183))
    assert torch.equal(truth.semantic_map, torch.from_numpy(draw_stuff("0.png")))
    drawn = build_truth(replace(image, stuff=None), small_config())
    assert set(drawn.semantic_map.unique().tolist()) == {0, 2}


@pytest.mark.parametrize("change", ["flip", "crop", "resize"])
def test_the_map_moves_with_the_image(image, change):
    changed = {
        "flip": flip_image,
        "crop": lambda p: crop_image(p, 5, 9, (70, 80)),
        "resize": lambda p: resize_image(p, (2 * SIDE, 2 * SIDE)),
    }[change](image)
    assert changed.stuff.shape == changed.size
    is_thing, is_known = changed.stuff == THING, changed.stuff != 255
    assert (is_thing != (changed.masks[0] > 0))[is_known].mean() < 0.005
    assert is_thing.any()


def test_a_pasted_object_brings_its_label(image):
    donor = replace(flip_image(image), stuff=np.full((SIDE, SIDE), 9, np.uint8))
    pasted = paste_objects(image, donor, np.random.default_rng(0))
    is_pasted = donor.masks[0] > 0
    assert (pasted.stuff[is_pasted] == 9).all()
    assert np.array_equal(pasted.stuff[~is_pasted], image.stuff[~is_pasted])
    assert (image.stuff != 9).all()


def test_all_augmentations_together_keep_the_map_fitting(image):
    augmentation = Augmentation(scale=(0.5, 2.0), colour=0.4, copy_paste=1.0)
    random = np.random.default_rng(1)
    changed = augment_image(image, image, augmentation, small_config().resize, random)
    assert changed.stuff.shape == changed.size
    assert set(np.unique(changed.stuff)) <= {THING, GRASS, 255}


def dataset(load_stuff, **changes):
    config = small_config(semantic_classes=20, **changes)
    return TrainingDataset(annotations(4), draw_image, config, Augmentation(), 0, load_stuff=load_stuff)


def test_training_reads_the_maps_only_for_a_semantic_branch():
    truth = dataset(draw_stuff)[[(0, 1)]].truths[0]
    assert set(truth.semantic_map.unique().tolist()) <= {THING, GRASS, 255}
    assert GRASS in truth.semantic_map.unique().tolist()

    def unwanted(name):
        raise AssertionError(name)

    assert dataset(unwanted, semantic=False)[[(0, 1)]].truths[0].semantic_map is None


@pytest.mark.parametrize(
    ("stuff", "reason"),
    [
        (np.full((SIDE, SIDE), 20, np.uint8), "has label 20, but model.semantic_classes is 20"),
        (np.zeros((SIDE, 50), np.uint8), "2.png is 50x96 but annotated as 96x96"),
    ],
)
def test_a_map_that_does_not_fit_is_named_and_its_image_replaced(stuff, reason):
    batch = dataset(lambda name: stuff if name == "2.png" else draw_stuff(name))[[(0, 2)]]
    assert reason in batch.unreadable[0]
    assert batch.names[0].startswith("3.png")


def test_classes_are_the_maps_own_or_cocos_or_follow_from_the_objects():
    def classes(has_stuff, **values):
        section = ModelSection(**values)
        return build_model_config(section, ["a", "b"], [1, 2], has_stuff=has_stuff).semantic_classes

    assert classes(False) == 3
    assert classes(True) == load_preset("htc_lite0_fpn").semantic_classes == 183
    assert classes(True, semantic_classes=20) == 20


def test_the_names_of_semantic_classes_are_kept_with_the_network():
    def named(has_stuff, **values):
        config = build_model_config(ModelSection(**values), ["cup", "bag"], [5, 6], has_stuff=has_stuff)
        kept = config_from_dict(config_to_dict(config))
        return kept.semantic_names, [(each.class_id, each.name, each.kind) for each in semantic_classes(kept)]

    assert named(False)[0] == ("cup", "bag", "other")
    names, classes = named(True, semantic_names=["sky", "bag", "road"])
    assert names == ("sky", "bag", "road")
    assert classes == [(1, "sky", "stuff"), (6, "bag", "thing"), (3, "road", "stuff")]
    # Maps with COCO's labels need no names; others are numbered.
    assert named(True, semantic_classes=4) == ((), [(1 + n, f"label {n}", "stuff") for n in range(4)])
    assert named(False, semantic=False, mask_info_flow=False)[0] == ()


def test_names_that_do_not_fit_are_refused(tmp_path):
    for values, words in (
        ({"semantic_names": ["a", "b"], "semantic_classes": 3}, "semantic_classes is 3, and semantic_names has 2"),
        ({"semantic_names": ["a", "a"]}, "a name twice"),
        ({"semantic_names": ["a", "b"]}, r"name their folder as train\.stuff"),
    ):
        with pytest.raises(ValueError, match=words):
            small_spec(str(tmp_path), model=values)


def test_maps_for_a_part_of_the_data_and_classes_without_maps_are_refused(tmp_path):
    source = {"annotations": "a.json", "images": "a"}
    with pytest.raises(ValueError, match="stuff must be named for all train data or for none"):
        small_spec(str(tmp_path), train=[source, source | {"stuff": "maps"}])
    with pytest.raises(ValueError, match=r"name their folder as train\.stuff"):
        small_spec(str(tmp_path), model={"semantic_classes": 20})
