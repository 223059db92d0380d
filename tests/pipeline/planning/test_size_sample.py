"""The sample of a probe: the same each time, whatever the order of the listing, with its mix of sizes."""

import random

from pipeline.inputs.image_ref import ImageRef
from pipeline.planning.size_sample import SizeSample


def picked(refs: list[ImageRef], images: int, pool_images: int = 512) -> list[ImageRef]:
    sample = SizeSample(pool_images)
    assert list(sample.follow(refs)) == refs
    return sample.pick(images)


def test_the_sample_does_not_depend_on_the_order() -> None:
    refs = [ImageRef(f"s3://b/{number}.jpg", bytes=number * 1000) for number in range(2000)]
    first = picked(refs, 16)
    random.Random(1).shuffle(refs)
    assert picked(refs, 16) == first
    assert len(set(first)) == 16


def test_each_part_of_the_sizes_is_in_it() -> None:
    # One image in eight is a hundred times larger.
    refs = [ImageRef(f"{number}.jpg", bytes=10**7 if number % 8 == 0 else 10**5) for number in range(4000)]
    sizes = [ref.bytes for ref in picked(refs, 32)]
    assert sizes == sorted(sizes, key=lambda size: size or 0)
    assert 3 <= sizes.count(10**7) <= 5


def test_few_images_are_all_taken_and_unknown_sizes_come_last() -> None:
    refs = [ImageRef("a.jpg"), ImageRef("b.jpg", bytes=7), ImageRef("c.jpg", bytes=5)]
    assert [ref.uri for ref in picked(refs, 24)] == ["c.jpg", "b.jpg", "a.jpg"]
    assert picked([], 24) == []
