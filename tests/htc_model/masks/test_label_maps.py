"""Maps of numbers drawn in bands are those of the bitmaps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from htc_model.masks.label_maps import label_bands
from htc_model.masks.many_runs import decode_counts, join_texts
from htc_model.masks.rle import encode_bitmap


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(0, 4), st.integers(1, 40))
def test_bands_are_the_bitmaps(seed: int, height: int, width: int, count: int, band_pixels: int) -> None:
    random = np.random.default_rng(seed)
    masks = [random.random((height, width)) < random.choice([0.0, 0.3, 0.8, 1.0]) for _ in range(count)]
    expected = np.zeros((height, width), int)
    for place in reversed(range(count)):
        expected[masks[place]] = place + 1
    texts = [encode_bitmap(mask)["counts"] for mask in masks]
    runs = decode_counts(*join_texts(texts), np.tile(np.array([height, width]), (count, 1))).runs()
    bands = list(label_bands(runs, (height, width), band_pixels=band_pixels))
    assert [top for top, _ in bands] == np.cumsum([0, *(len(band) for _, band in bands[:-1])]).tolist()
    assert all(band.size <= max(band_pixels, width) for _, band in bands)
    assert (np.concatenate([band for _, band in bands]) == expected).all()
