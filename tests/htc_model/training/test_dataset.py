"""The order of batches, and the handling of unreadable images."""

import pytest
import torch

from htc_model.training.annotations import AnnotationError
from htc_model.training.augment import Augmentation
from htc_model.training.coco_reader import read_annotations
from htc_model.training.dataset import BatchPlan, TrainingDataset, iterate_batches
from tests.support.builders.training_data import draw_image, small_config, small_document

RATIOS = [1.5, 0.7, 1.4, 0.6, 1.3, 0.8, 1.2]


def places(**changes):
    arguments = {"seed": 0, "epoch": 0} | changes
    return list(BatchPlan(RATIOS, 2, **arguments))


def test_an_epoch_shows_every_image_once():
    assert sorted(index for batch in places() for _, index in batch) == list(range(len(RATIOS)))


def test_landscape_and_portrait_never_share_a_batch():
    for batch in places():
        assert len({RATIOS[index] >= 1 for _, index in batch}) == 1


def test_epochs_and_seeds_differ_but_repeat_themselves():
    assert places() == places()
    assert [[i for _, i in b] for b in places()] != [[i for _, i in b] for b in places(epoch=1)]
    assert places() != places(seed=1)


def test_ranks_share_the_images_and_take_equally_many_steps():
    ranks = [places(rank=rank, world_size=3) for rank in range(3)]
    assert len({len(mine) for mine in ranks}) == 1
    assert {index for mine in ranks for batch in mine for _, index in batch} == set(range(len(RATIOS)))


def test_a_resumed_epoch_continues_where_it_stopped():
    assert places(first_batch=2) == places()[2:]


def dataset(load_image=draw_image, count=6):
    annotations = read_annotations(small_document(count))
    augmentation = Augmentation(scale=(0.7, 1.3), colour=0.3, copy_paste=0.5)
    return TrainingDataset(annotations, load_image, small_config(), augmentation, seed=3)


def test_a_batch_depends_on_its_place_alone():
    first, again = dataset()[[(0, 1), (0, 2)]], dataset()[[(0, 1), (0, 2)]]
    assert torch.equal(first.images.pixels, again.images.pixels)
    later = dataset()[[(1, 1), (1, 2)]]
    assert later.images.pixels.shape != first.images.pixels.shape or not torch.equal(
        later.images.pixels, first.images.pixels
    )


def test_truth_fits_the_pixels():
    batch = dataset()[[(0, 0), (0, 1)]]
    for truth, (height, width) in zip(batch.truths, batch.images.image_sizes, strict=True):
        assert truth.masks.shape == (len(truth.labels), height, width)
        assert truth.semantic_map.shape == (height, width)
        assert (truth.boxes_xyxy[:, 2:] <= torch.tensor([width, height])).all()
    assert batch.images.pixels.shape[-1] % 32 == batch.images.pixels.shape[-2] % 32 == 0


def test_an_unreadable_image_is_named_and_replaced():
    def load(name):
        if name == "2.png":
            raise OSError("truncated")
        return draw_image(name)

    batch = dataset(load)[[(0, 2)]]
    assert batch.unreadable[0] == "2.png: truncated"
    assert batch.names[0].startswith("3.png")


def test_an_image_of_another_size_than_annotated_is_named():
    batch = dataset(lambda name: draw_image(name)[: 50 if name == "0.png" else None])[[(0, 0)]]
    assert batch.unreadable[0] == "0.png: 0.png is 96x50 but annotated as 96x96"


def test_a_folder_of_unreadable_images_ends_the_run():
    def load(name):
        raise OSError("no such file")

    with pytest.raises(AnnotationError, match=r"6 images in a row cannot be read; the last one is \d.png: no such"):
        dataset(load)[[(0, 2)]]


@pytest.mark.slow
def test_loaders_change_nothing():
    plan = BatchPlan([1.0] * 6, 2, seed=0, epoch=0)
    alone = [batch.images.pixels for batch in iterate_batches(dataset(), plan, loaders=0)]
    ahead = [batch.images.pixels for batch in iterate_batches(dataset(), plan, loaders=2)]
    assert all(torch.equal(*pair) for pair in zip(alone, ahead, strict=True))
    assert len(alone) == 3
