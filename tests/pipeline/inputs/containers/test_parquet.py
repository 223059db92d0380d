"""Rows of Parquet files are read in bounded memory: at most a page at a time, and no page that is too large."""

import io
import json
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DamagedContainerError, ImageError, StorageError
from pipeline.inputs.containers.parquet import ParquetRows
from pipeline.inputs.containers.parquet_pages import Page, read_chunks, read_pages
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage.storage import Storage
from tests.support.paths import ROOT

MIB = 2**20


def write(path: Path, values: list[bytes | None], **options: object) -> Path:
    pieces = [pa.array([value], pa.binary()) for value in values]
    pq.write_table(pa.table({"image": pa.chunked_array(pieces)}), path, compression="zstd", **options)
    return path


def refs_of(path: Path) -> list[ImageRef]:
    return list(list_images(InputSection(uri=str(path)), Storage()))


# Arrow's pool keeps its peak, so each measurement needs its own process.
READ = """
import json, sys
import pyarrow as pa
from pipeline.job_spec.job import InputSection
from pipeline.errors import ImageError
from pipeline.inputs.read import read_image
from pipeline.inputs.listing import list_images
from pipeline.storage.storage import Storage
refs, outcomes = list(list_images(InputSection(uri=sys.argv[1]), Storage())), []
for row in json.loads(sys.argv[3]):
    try:
        outcomes.append(len(read_image(refs[row], Storage(), max_bytes=int(sys.argv[2]))))
    except ImageError as error:
        outcomes.append(error.status)
print(json.dumps([outcomes, len(refs), pa.default_memory_pool().max_memory()]))
"""


def read_apart(path: Path, rows: list[int], max_bytes: int = 512 * MIB) -> tuple[list[int | str], int, int]:
    """Read rows in another process: their sizes or statuses, the number of rows, and the most bytes Arrow held."""
    command = [sys.executable, "-c", READ, str(path), str(max_bytes), json.dumps(rows)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    outcomes, count, peak = json.loads(answer.stdout)
    return outcomes, count, peak


@pytest.mark.parametrize("is_struct", [True, False])
def test_a_row_group_is_never_in_memory_as_a_whole(tmp_path: Path, is_struct: bool) -> None:
    """A row group with 96 MiB of images, more than may be in memory at once."""
    pieces = [pa.array([bytes([number]) + bytes(4 * MIB)], pa.binary()) for number in range(24)]
    if is_struct:
        pieces = [pa.StructArray.from_arrays([piece, pa.array(["x"])], ["bytes", "path"]) for piece in pieces]
    table = pa.table({"image": pa.chunked_array(pieces)})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    outcomes, _, peak = read_apart(tmp_path / "x.parquet", list(range(24)))
    assert outcomes == [4 * MIB + 1] * 24
    assert 4 * MIB < peak < 48 * MIB


def test_listing_reads_no_image_where_the_column_is_plain(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [bytes([n]) + bytes(4 * MIB) for n in range(6)], use_dictionary=False)
    outcomes, count, peak = read_apart(path, [])
    assert (outcomes, count) == ([], 6)
    assert peak < MIB


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_one_value_that_is_too_large_is_refused_before_it_is_decompressed(tmp_path: Path, use_dictionary: bool) -> None:
    path = write(tmp_path / "x.parquet", [bytes(24 * MIB)] * 3, use_dictionary=use_dictionary)
    assert path.stat().st_size < 64 * 1024
    outcomes, _, peak = read_apart(path, [0, 1, 2, 2, 1, 0], max_bytes=MIB)
    assert outcomes == ["too_large"] * 6
    assert peak < 16 * MIB


def test_a_dictionary_value_that_all_rows_share_is_not_multiplied(tmp_path: Path) -> None:
    """Ten thousand rows with the same value of 8 MiB: 80 GB, if they were expanded together."""
    indices = pa.array([0] * 10_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array([bytes(8 * MIB)], pa.binary()))
    pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet", compression="zstd")
    outcomes, count, peak = read_apart(tmp_path / "x.parquet", [0, 3, 40])
    assert (outcomes, count) == ([8 * MIB] * 3, 10_000)
    assert 8 * MIB < peak < 80 * MIB
    outcomes, _, peak = read_apart(tmp_path / "x.parquet", [9_999], max_bytes=MIB)
    assert outcomes == ["too_large"]
    assert peak < 4 * MIB


def test_rows_around_one_that_is_too_large_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [b"first", bytes(16 * MIB), b"last", None], use_dictionary=False)
    first, large, last, null = refs_of(path)
    assert read_image(first, Storage(), max_bytes=MIB) == b"first"
    with pytest.raises(ImageError, match="too_large"):
        read_image(large, Storage(), max_bytes=MIB)
    assert read_image(last, Storage(), max_bytes=MIB) == b"last"
    with pytest.raises(ImageError, match="null"):
        read_image(null, Storage(), max_bytes=MIB)


def test_a_page_that_is_too_large_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [bytes([n]) * 90 for n in range(30)]}), path, use_dictionary=False)
    with ParquetRows(most_page_bytes=1000) as rows:
        for row in range(0, 30, 7):
            with pytest.raises(ImageError, match=r"too_large.*page of \d+ bytes.*smaller row groups"):
                rows.read(str(path), row, "image", Storage(), max_bytes=100)
            assert len(rows.read(str(path), row, "image", Storage(), max_bytes=MIB).payload or b"") == 90


def test_two_shards_read_one_row_group_at_two_places_without_starting_over(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [b"%d" % number for number in range(600)])
    with ParquetRows() as rows:

        def read(row: int) -> None:
            assert rows.read(str(path), row, "image", Storage()).payload == b"%d" % row

        for row in range(150):
            read(row)
            read(200 + row)
        assert rows.opened == 2
        # Just ahead of the second reader, then far ahead of both, then before all of them.
        for row in (*range(380, 400), *range(500, 520), *range(3)):
            read(row)
        assert rows.opened == 4


def test_threads_share_the_readers_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [b"%d" % number for number in range(600)])
    starts = range(0, 600, 150)
    with ParquetRows() as rows, ThreadPoolExecutor(len(starts)) as pool:
        together = threading.Barrier(len(starts))

        def read(first: int) -> list[bytes | None]:
            together.wait(60)
            return [rows.read(str(path), row, "image", Storage()).payload for row in range(first, first + 150)]

        found = [payload for payloads in pool.map(read, starts) for payload in payloads]
    assert found == [b"%d" % number for number in range(600)]


def test_no_file_stays_open_after_the_last_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [b"a", b"b"])
    rows = ParquetRows()
    assert [rows.read(str(path), row, "image", Storage()).payload for row in range(2)] == [b"a", b"b"]
    assert rows.open_count == 0
    with pytest.raises(ImageError, match="none of number 2"):
        rows.read(str(path), 2, "image", Storage())
    with pytest.raises(ImageError, match="no column photo"):
        rows.read(str(path), 0, "photo", Storage())
    with pytest.raises(StorageError):
        rows.read(str(tmp_path / "gone.parquet"), 0, "image", Storage())
    assert rows.open_count == 0


def test_rows_of_a_remote_file_are_read_too(tmp_path: Path) -> None:
    images = [bytes([number]) * 1000 for number in range(50)]
    payload = write(tmp_path / "x.parquet", images, row_group_size=20).read_bytes()
    Storage().write("memory://rows-test/x.parquet", payload)
    refs = list(list_images(InputSection(uri="memory://rows-test/x.parquet", image_column="image"), Storage()))
    assert [read_image(ref, Storage()) for ref in refs] == images


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_page_headers_add_up_to_the_footer(
    tmp_path: Path, version: str, compression: str, use_dictionary: bool
) -> None:
    values = [bytes([number]) * (number * 37) for number in range(1, 200)]
    pq.write_table(
        pa.table({"image": [None, *values] * 2}),
        tmp_path / "x.parquet",
        data_page_version=version,
        compression=compression,
        data_page_size=4096,
        write_batch_size=8,
        use_dictionary=use_dictionary,
        write_statistics=True,
    )
    chunk = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(0)
    start = min(each for each in (chunk.dictionary_page_offset, chunk.data_page_offset) if each)
    with (tmp_path / "x.parquet").open("rb", buffering=0) as file:
        pages = list(read_pages(file, start, chunk.total_compressed_size))
    data = [page for page in pages if not page.is_dictionary]
    assert len(data) < len(pages) if use_dictionary else len(data) > 10
    assert sum(page.values for page in data) == 400
    assert sum(page.bytes for page in pages) <= chunk.total_uncompressed_size + 64 * len(pages)


@pytest.mark.parametrize("columns", [1, 40])
def test_the_footer_is_read_as_pyarrow_reads_it(tmp_path: Path, columns: int) -> None:
    image = pa.array([{"bytes": b"x" * number, "path": None} for number in range(50)])
    table = pa.table({"image": image, **{f"n{number}": list(range(50)) for number in range(columns)}})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=20)
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    with (tmp_path / "x.parquet").open("rb", buffering=0) as file:
        groups = read_chunks(file)
    assert len(groups) == metadata.num_row_groups == 3
    for number, chunks in enumerate(groups):
        group = metadata.row_group(number)
        assert list(chunks) == [group.column(index).path_in_schema for index in range(group.num_columns)]
        for index, chunk in enumerate(chunks.values()):
            column = group.column(index)
            offsets = (column.dictionary_page_offset, column.data_page_offset)
            assert chunk.start == min(each for each in offsets if each)
            assert (chunk.length, chunk.uncompressed_bytes) == (
                column.total_compressed_size,
                column.total_uncompressed_size,
            )


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120))
def test_random_bytes_as_a_footer_are_refused(payload: bytes) -> None:
    content = b"PAR1" + payload + len(payload).to_bytes(4, "little") + b"PAR1"
    with suppress(DamagedContainerError):
        for group in read_chunks(io.BytesIO(content)):
            assert all(chunk.length >= 0 for chunk in group.values())


def test_a_damaged_size_statistic_does_not_end_the_process() -> None:
    """One bit of its footer was flipped; `RowGroupMetaData.column` of pyarrow 26.0 aborts on it. Found by fuzzing."""
    outcomes, count, _ = read_apart(ROOT / "tests/data/damaged_size_statistic.parquet", [0, 11])
    assert count == 12
    assert outcomes == ["unreadable"] * 2


def page_header(*fields: bytes) -> bytes:
    return b"".join(fields) + b"\0"


def test_page_headers_of_any_kind_are_read_or_refused() -> None:
    # type 0, 300 bytes, 5 in the file, and a header with 7 values; after it the page's 5 bytes.
    sound = page_header(b"\x15\x00", b"\x15\xd8\x04", b"\x15\x0a", b"\x2c\x15\x0e\x00") + b"abcde"
    assert list(read_pages(io.BytesIO(sound), 0, len(sound))) == [Page(300, 7, is_dictionary=False)]
    for cut in (1, 4, 9):
        with pytest.raises(DamagedContainerError):
            list(read_pages(io.BytesIO(sound[:cut]), 0, cut))
    for damaged in (
        page_header(b"\x15\x00", b"\x15\x01", b"\x15\x0a", b"\x2c\x15\x0e\x00"),  # a size below zero
        page_header(b"\x15\x00", b"\x15\xd8\x04", b"\x15\x0a"),  # no header of its kind
        page_header(b"\x19\x00"),  # a list
        b"\x1c" * 40,  # structs without end
        b"\x15" + b"\xff" * 40,  # a number without end
    ):
        with pytest.raises(DamagedContainerError):
            list(read_pages(io.BytesIO(damaged), 0, len(damaged)))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_as_page_headers_end(payload: bytes) -> None:
    try:
        pages = list(read_pages(io.BytesIO(payload), 0, len(payload)))
    except DamagedContainerError:
        return
    assert all(page.bytes >= 0 for page in pages)


def test_a_page_is_checked_by_its_own_header_not_the_footer(tmp_path: Path) -> None:
    """The footer says that the column is small; the page header has the true size."""
    path = write(tmp_path / "x.parquet", [bytes(70 * MIB)], use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    honest, small = _zigzag(chunk.total_uncompressed_size), _zigzag(2**20 + 1000)
    assert len(honest) == len(small)
    path.write_bytes(path.read_bytes().replace(honest, small))
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 2**20 + 1000
    outcomes, _, peak = read_apart(path, [0], max_bytes=2 * MIB)
    assert outcomes == ["too_large"]
    assert peak < 16 * MIB


def _zigzag(value: int) -> bytes:
    value, out = value << 1, b""
    while value >= 0x80:
        out, value = out + struct.pack("B", value & 0x7F | 0x80), value >> 7
    return out + struct.pack("B", value)
