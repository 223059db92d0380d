"""The SQL functions for masks: the values of pycocotools, NULL, constants, damaged masks, and who may use them."""

import io
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pycocotools.mask as coco
import pytest
from PIL import Image

from htc_model.masks.rle import decode_rle, encode_bitmap
from pipeline.errors import SpecError
from pipeline.output.mask_functions import MASK_FUNCTIONS, PIECE_ROWS, register_mask_functions
from pipeline.output.schema import MASK_TYPE
from pipeline.output.views import translated_sql_errors

SIZE = (9, 13)


def random_masks(count: int, seed: int, size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    shares = rng.choice([0.0, 0.3, 0.7, 1.0], count)
    masks = [encode_bitmap(rng.random(size) < share) for share in shares]
    return [{"size": mask["size"], "counts": mask["counts"].decode()} for mask in masks]


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        register_mask_functions(connection)
        yield connection


def ask(database: duckdb.DuckDBPyConnection, sql: str) -> Any:
    with translated_sql_errors():
        return database.execute(sql).fetchall()


def test_rows_of_every_piece_have_the_values_of_pycocotools(database: duckdb.DuckDBPyConnection) -> None:
    rows = 2048 + PIECE_ROWS + 5  # DuckDB hands on 2,048 rows at once
    a, b = random_masks(rows, 0), random_masks(rows, 1)
    database.register("pairs", pa.table({"a": pa.array(a, MASK_TYPE), "b": pa.array(b, MASK_TYPE)}))
    answer = ask(
        database,
        "SELECT mask_area(a), mask_bbox(a), mask_iou(a, b), mask_intersection_area(a, b), mask_intersection(a, b), "
        "mask_union(a, b), mask_is_valid(a) FROM pairs",
    )
    for one, other, (area, box, iou, shared, both, either, is_valid) in zip(a, b, answer, strict=True):
        merged = coco.merge([one, other], intersect=True)
        assert area == coco.area(one)
        assert list(box.values()) == coco.toBbox(one).tolist()
        assert iou == coco.iou([one], [other], [0])[0, 0]
        assert shared == coco.area(merged)
        assert both == {"size": list(SIZE), "counts": merged["counts"].decode()}
        assert either == {"size": list(SIZE), "counts": coco.merge([one, other])["counts"].decode()}
        assert is_valid is True


def test_pictures_crops_and_outlines_are_those_of_the_bitmap(database: duckdb.DuckDBPyConnection) -> None:
    masks = random_masks(20, 2)
    database.register("masks", pa.table({"m": pa.array(masks, MASK_TYPE)}))
    for mask, (png, crop, wkt, perimeter, centre) in zip(
        masks,
        ask(
            database,
            "SELECT mask_png(m), mask_crop(m, {'x': 2, 'y': 1.5, 'width': 4, 'height': 90}), mask_polygons(m), "
            "mask_perimeter(m), mask_centroid(m) FROM masks",
        ),
        strict=True,
    ):
        bitmap = decode_rle(mask)
        assert (np.asarray(Image.open(io.BytesIO(png))) == bitmap * 255).all()
        assert (decode_rle(crop) == bitmap[1:, 2:6]).all()
        assert wkt.startswith("MULTIPOLYGON")
        assert (wkt == "MULTIPOLYGON EMPTY") == (perimeter == 0) == (centre is None) == (not bitmap.any())


def test_null_gives_null_and_a_constant_is_repeated(database: duckdb.DuckDBPyConnection) -> None:
    masks = random_masks(3000, 3)
    column = pa.array([mask if number % 3 else None for number, mask in enumerate(masks)], MASK_TYPE)
    database.register("masks", pa.table({"m": column}))
    constant = f"{{'size': {list(SIZE)}, 'counts': '{masks[1]['counts']}'}}"
    answer = ask(database, f"SELECT mask_area(m), mask_intersection_area({constant}, m), mask_iou(m, NULL) FROM masks")
    for number, (mask, row) in enumerate(zip(masks, answer, strict=True)):
        shared = coco.area(coco.merge([mask, masks[1]], intersect=True))
        assert row == ((coco.area(mask), shared, None) if number % 3 else (None, None, None))


def test_masks_of_two_sizes_have_no_common_pixels_to_count(database: duckdb.DuckDBPyConnection) -> None:
    a, b = random_masks(4, 4), [*random_masks(2, 5), *random_masks(2, 6, (13, 9))]
    database.register("pairs", pa.table({"a": pa.array(a, MASK_TYPE), "b": pa.array(b, MASK_TYPE)}))
    answer = ask(database, "SELECT mask_iou(a, b), mask_intersection_area(a, b), mask_union(a, b) FROM pairs")
    assert [[value is None for value in row] for row in answer] == [[False] * 3] * 2 + [[True] * 3] * 2


@pytest.mark.parametrize(
    "mask",
    [
        "{'size': [9, 13], 'counts': '1'}",
        "{'size': [9, 13], 'counts': 'ä'}",
        "{'size': [9], 'counts': '9'}",
        "{'size': [9, NULL], 'counts': '9'}",
        "{'size': NULL, 'counts': '9'}",
        "{'size': [9, 13], 'counts': NULL}",
        "{'size': [-9, -13], 'counts': 'e3'}",
    ],
)
def test_a_damaged_mask_is_an_error_that_names_the_function(database: duckdb.DuckDBPyConnection, mask: str) -> None:
    assert ask(database, f"SELECT mask_is_valid({mask})") == [(False,)]
    for function in MASK_FUNCTIONS:
        if function.name in ("mask_is_valid", "mask_crop"):
            continue
        arguments = ", ".join([mask] * len(function.parameters))
        with pytest.raises(SpecError, match=rf"^{function.name}: a mask of .* is damaged.*mask_is_valid"):
            ask(database, f"SELECT {function.name}({arguments})")


def test_wrong_arguments_are_named_in_one_sentence(database: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(SpecError, match=r"mask_area\(INTEGER_LITERAL\)"):
        ask(database, "SELECT mask_area(3)")
    with pytest.raises(SpecError, match=r"^mask_crop: a box to crop to has no pixel inside its image\.$"):
        ask(
            database,
            "SELECT mask_crop({'size': [2, 2], 'counts': '4'}, {'x': 5, 'y': 0, 'width': 1, 'height': 1})",
        )
