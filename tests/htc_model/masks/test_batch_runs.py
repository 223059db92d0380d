"""The runs of a batch's masks, found at fixed shapes, encode to the same bytes as image by image."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from htc_model.masks import batch_runs
from htc_model.masks.batch_runs import MaskRuns, count_columns, find_runs
from htc_model.masks.encode import PieceTable, encode_masks
from htc_model.structures import Rle

Case = tuple[Tensor, Tensor, list[tuple[int, int]], list[Rle]]


def blobs(count: int, generator: torch.Generator) -> Tensor:
    return F.interpolate(torch.rand(count, 1, 5, 5, generator=generator), size=28, mode="bilinear")[:, 0]


def noise(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 28, 28, generator=generator)


def full(count: int, _generator: torch.Generator) -> Tensor:
    return torch.ones(count, 28, 28)


MAPS = {"blobs": blobs, "noise": noise, "full": full}


def images_of_many_sizes(kind: str, seed: int) -> Case:
    """Instances of five images with boxes inside, across the border, outside, and without area; and their masks."""
    generator = torch.Generator().manual_seed(seed)
    maps, boxes, sizes, expected = [], [], [], []
    for _ in range(5):
        height, width = (int(side) for side in torch.randint(1, 200, (2,), generator=generator))
        count = int(torch.randint(0, 8, (), generator=generator))
        image_maps = MAPS[kind](count, generator)
        extent = torch.tensor([width, height])
        corner = (torch.rand(count, 2, generator=generator) * 1.2 - 0.1) * extent
        image_boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) ** 3 * extent * 1.5], dim=1)
        if kind == "full":
            # Columns filled from top to bottom: the run goes on in the next column.
            image_boxes = torch.tensor([[-5.0, -40.0, width + 5, height + 40]]).repeat(count, 1)
        image_boxes[3:4] = 0
        maps.append(image_maps)
        boxes.append(image_boxes)
        sizes += [(height, width)] * count
        expected += encode_masks(image_maps, image_boxes, (height, width))
    return torch.cat(maps), torch.cat(boxes), sizes, expected


@pytest.mark.parametrize("buckets", [(4_096, 16_384), (64,), (31,)], ids=["one pass", "passes of 64", "of 31"])
@pytest.mark.parametrize("kind", list(MAPS))
def test_the_bytes_are_those_of_each_image_alone(
    kind: str, buckets: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runs, "COLUMN_BUCKETS", {"cpu": buckets})
    for seed in range(2):
        maps, boxes, sizes, expected = images_of_many_sizes(kind, seed)
        assert len(expected) > 3
        assert find_runs(maps, boxes, sizes).wait().encode() == expected


def test_a_buffer_that_is_too_small_is_filled_again() -> None:
    maps, boxes, sizes, expected = images_of_many_sizes("noise", 1)
    runs = find_runs(maps, boxes, sizes, runs_per_column=2).wait()
    total = int(count_columns(boxes, torch.tensor(sizes)))
    assert len(runs.begins) > 2 * total
    assert runs.encode() == expected


def test_runs_can_be_encoded_by_another_process() -> None:
    maps, boxes, sizes, expected = images_of_many_sizes("blobs", 0)
    runs = pickle.loads(pickle.dumps(find_runs(maps, boxes, sizes).wait()))
    assert isinstance(runs, MaskRuns)
    assert runs.encode() == expected


def test_positions_beyond_32_bits() -> None:
    maps, boxes = blobs(1, torch.Generator().manual_seed(0)), torch.tensor([[49_900.0, 100.0, 49_960.0, 180.0]])
    sizes = [(50_000, 50_000)]
    runs = find_runs(maps, boxes, sizes).wait()
    assert runs.begins.max() > 2**31
    assert runs.encode() == encode_masks(maps, boxes, sizes[0])


def test_no_instances_and_no_columns() -> None:
    assert find_runs(torch.zeros(0, 28, 28), torch.zeros(0, 4), []).wait().encode() == []
    empty = find_runs(torch.ones(2, 28, 28), torch.zeros(2, 4), [(4, 5), (7, 9)]).wait()
    assert empty.encode() == [
        *encode_masks(torch.ones(1, 28, 28), torch.zeros(1, 4), (4, 5)),
        *encode_masks(torch.ones(1, 28, 28), torch.zeros(1, 4), (7, 9)),
    ]


def test_the_number_of_columns_is_that_of_the_table() -> None:
    maps, boxes, sizes, _ = images_of_many_sizes("blobs", 2)
    table = PieceTable(maps, boxes, torch.tensor(sizes), 0.5)
    assert int(count_columns(boxes, torch.tensor(sizes))) == int(table.slot_bounds[-1]) > 0
