"""The format is detected by the bytes, and every image-like file of a folder or tar has a row."""

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from pipeline.inputs.decode import decode_image
from pipeline.inputs.label_maps import decode_label_map
from pipeline.inputs.listing import SourceNotes, list_images, locate_image
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage.storage import Storage
from tests.support.builders.images import decode_error, encoded, gradient

ORIENTATION = 0x0112


def heic(image: Image.Image, **options: Any) -> bytes:
    """Lossless HEIC, as pillow-heif's Pillow plug-in writes it."""
    pillow_heif.register_heif_opener()
    return encoded(image, "HEIF", quality=-1, chroma=444, matrix_coefficients=0, **options)


# --- HEIC and AVIF ---------------------------------------------------------------------------------------------


def sample_image() -> Image.Image:
    return gradient(48, 64)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_heic_gives_its_pixels_without_alpha(mode: str) -> None:
    image = sample_image().convert(mode)
    if "A" in mode:
        image.putalpha(7)
    expected = np.asarray(sample_image().convert(mode.rstrip("A") if mode != "RGBA" else "RGB").convert("RGB"))
    for _ in range(3):
        np.testing.assert_array_equal(decode_image(heic(image)), expected)


@pytest.mark.parametrize("is_12_bit", [False, True])
def test_deep_heic_is_converted_to_8_bits(is_12_bit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", is_12_bit)
    deep = (np.asarray(sample_image()).astype(np.uint16) * 257).astype("<u2")
    file = pillow_heif.from_bytes("RGB;16", (64, 48), deep.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, quality=-1, chroma=444, matrix_coefficients=0)
    assert np.abs(decode_image(buffer.getvalue()).astype(int) - np.asarray(sample_image())).max() <= 1


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    rotated = sample_image()
    rotated.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(rotated)).astype(int)
    if kind == "HEIF":
        payload = heic(sample_image(), exif=exif.tobytes())
    else:
        payload = encoded(sample_image(), "AVIF", exif=exif, quality=100, subsampling="4:4:4")
    found = decode_image(payload)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 4


def test_the_primary_image_is_read() -> None:
    file = pillow_heif.from_pillow(Image.new("RGB", (20, 20)))
    file.add_from_pillow(sample_image())
    buffer = io.BytesIO()
    file.save(buffer, primary_index=1, quality=-1, chroma=444, matrix_coefficients=0, save_all=True)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), np.asarray(sample_image()))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_gives_its_pixels(mode: str) -> None:
    image = sample_image().convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    payload = encoded(image, "AVIF", quality=100, subsampling="4:0:0" if mode == "L" else "4:4:4")
    assert np.abs(decode_image(payload) - expected).max() <= 4


def test_an_avif_sequence_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), "blue")]
    payload = encoded(Image.new("RGB", (32, 32), "red"), "AVIF", save_all=True, append_images=frames)
    assert np.abs(decode_image(payload).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_limits_and_damage(kind: str) -> None:
    payload = heic(sample_image()) if kind == "HEIF" else encoded(sample_image(), "AVIF")
    assert decode_error(payload, max_pixels=100).status == "too_large"
    for share in (0.1, 0.5, 0.9):
        assert decode_error(payload[: int(len(payload) * share)]).status == "unreadable"


# --- detected by the bytes -------------------------------------------------------------------------------------------


def brands(*names: bytes) -> bytes:
    body = names[0] + b"\0\0\0\0" + b"".join(names[1:])
    return struct.pack(">I", len(body) + 8) + b"ftyp" + body + bytes(100)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (brands(b"mif1", b"mif1", b"heic"), "HEIC"),
        (brands(b"mif1", b"mif1", b"avif", b"miaf"), "AVIF"),
        (brands(b"crx ", b"crx ", b"isom"), "camera raw (Canon CR3)"),
        (brands(b"isom", b"mp42"), "MP4 or QuickTime"),
        (brands(b"qt  "), "MP4 or QuickTime"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw (Fujifilm RAF)"),
        (b"IIU\0\x18\0\0\0", "camera raw (Panasonic RW2)"),
        (b"IIRO\x08\0\0\0", "camera raw (Olympus ORF)"),
        (b"\xff\x0a\xfa\x1f\x41\x91\x08\x06\x01\0", "JPEG XL files are not supported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL files are not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 files are not supported"),
        (b"8BPS\0\1", "Photoshop files are not supported"),
        (b"\x76\x2f\x31\x01\x02\0\0\0", "OpenEXR files are not supported"),
        (b"\0\0\1\0\1\0\x20\x20", "icon (ICO) files are not supported"),
        (b"\0\0\2\0\0\0\0\0\0\0\0\0\x10\0\x10\0\x18\0", "TGA files are not supported"),
        (b"<?xml version='1.0'?>\n<!-- a --><!DOCTYPE svg><svg/>", "SVG files are not supported"),
        (b"\xef\xbb\xbf<svg xmlns=''/>", "SVG files are not supported"),
        (b"DDS |\0\0\0", "DDS"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"<html><svg></svg></html>", "not an image"),
    ],
)
def test_an_unsupported_format_is_named(payload: bytes, reason: str) -> None:
    error = decode_error(payload)
    assert error.status == "unreadable"
    assert reason in error.reason


def test_16_bit_pnm_keeps_the_upper_eight() -> None:
    values = (np.arange(6 * 4 * 3, dtype=np.uint32) * 900).reshape(4, 6, 3)
    colour = b"P6\n6 4\n65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(colour), values >> 8)
    gray = b"P5\n6 4\n65535\n" + values[..., 0].astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(gray)[..., 0], values[..., 0] >> 8)
    ten_bits = b"P6\n6 4\n1023\n" + (values >> 6).astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(ten_bits), values >> 8)
    assert decode_error(colour[:40]).status == "unreadable"
    assert decode_error(b"P6\n99999 99999\n65535\n").status == "too_large"


# --- damaged metadata -----------------------------------------------------------------------------


def chunk(name: bytes, data: bytes, *, is_sound: bool = True) -> bytes:
    checksum = zlib.crc32(name + data) ^ (not is_sound)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


BAD_CHUNKS = {
    "1.3 MB of ICC": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_300_000))),
    "2 MB of zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
    "an iTXt bomb": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(20_000_000))),
    "70 MB of tEXt": chunk(b"tEXt", b"k\0" + b"v" * 1_000_000) * 70,
    "tIME checksum": chunk(b"tIME", b"\7\xe5\1\1\1\1\1", is_sound=False),
    "tEXt checksum": chunk(b"tEXt", b"a\0b", is_sound=False),
    "short pHYs": chunk(b"pHYs", b"\0\0"),
    "short cHRM": chunk(b"cHRM", b"\0\0"),
    "empty gAMA": chunk(b"gAMA", b""),
    "empty sRGB": chunk(b"sRGB", b""),
    "empty iCCP": chunk(b"iCCP", b""),
    "short tRNS": chunk(b"tRNS", b"\0"),
    "wrong zTXt": chunk(b"zTXt", b"x\0\5zzz"),
    "wrong eXIf": chunk(b"eXIf", b"junk"),
    "short acTL": chunk(b"acTL", b"\0"),
    "short fcTL": chunk(b"fcTL", b"\0"),
    "palette of an RGB image": chunk(b"PLTE", bytes(8), is_sound=False),
}


@pytest.mark.parametrize("damage", BAD_CHUNKS)
def test_a_png_with_damaged_metadata_is_decoded(damage: str) -> None:
    whole = encoded(gradient(), "PNG")
    payload = whole[:33] + BAD_CHUNKS[damage] + whole[33:]
    np.testing.assert_array_equal(decode_image(payload), np.asarray(gradient()))
    behind = whole[:-12] + BAD_CHUNKS[damage] + whole[-12:]
    np.testing.assert_array_equal(decode_image(behind), np.asarray(gradient()))


def test_a_label_map_with_damaged_metadata_is_decoded() -> None:
    whole = encoded(gradient().convert("L"), "PNG")
    payload = whole[:33] + BAD_CHUNKS["short pHYs"] + whole[33:]
    np.testing.assert_array_equal(decode_label_map(payload), np.asarray(gradient().convert("L")))


@pytest.mark.parametrize(
    ("name", "reason"), [(b"CgBI", "Apple"), (b"ABCD", "critical chunk ABCD")], ids=["Apple's", "unknown critical"]
)
def test_a_foreign_png_chunk_is_named(name: bytes, reason: str) -> None:
    whole = encoded(gradient(), "PNG")
    assert reason in decode_error(whole[:8] + chunk(name, b"\x50\0\x20\2") + whole[8:]).reason


def test_pixel_data_that_do_not_match_their_checksum_are_damaged() -> None:
    payload = bytearray(encoded(gradient(), "PNG"))
    place = payload.index(b"IDAT")
    payload[place + 20] ^= 1
    assert "checksum" in decode_error(bytes(payload)).reason


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


BAD_SEGMENTS = {
    "EXIF": segment(0xE1, b"Exif\0\0junk"),
    "empty ICC": segment(0xE2, b"ICC_PROFILE\0"),
    "broken ICC": segment(0xE2, b"ICC_PROFILE\0\1\2" + b"x" * 50),
    "13 MB of APP5": segment(0xE5, bytes(65_000)) * 200,
    "short Adobe": segment(0xEE, b"Adobe"),
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "Photoshop": segment(0xED, b"Photoshop 3.0\0junkjunk"),
    "MPF": segment(0xE2, b"MPF\0junk"),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<junk"),
}


@pytest.mark.parametrize("damage", BAD_SEGMENTS)
def test_a_jpeg_with_damaged_metadata_is_decoded(damage: str) -> None:
    whole = encoded(gradient(), "JPEG")
    payload = whole[:2] + BAD_SEGMENTS[damage] + whole[2:]
    np.testing.assert_array_equal(decode_image(payload), decode_image(whole))
    np.testing.assert_array_equal(decode_image(payload + b"garbage" * 100), decode_image(whole))


def test_a_jpeg_of_12_bits_is_named() -> None:
    payload = encoded(gradient(), "JPEG")
    place = payload.index(b"\xff\xc0") + 4
    assert "12 bits" in decode_error(payload[:place] + b"\x0c" + payload[place + 1 :]).reason


def test_the_canvas_around_a_gifs_first_frame_has_the_background_colour() -> None:
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255])
    whole = encoded(Image.new("P", (4, 4)), "GIF")
    place = whole.index(b",\0\0\0\0")
    data = whole[place + 10 + (3 * (2 << (whole[place + 9] & 7)) if whole[place + 9] & 0x80 else 0) :]
    frame = b"," + struct.pack("<HHHHB", 3, 2, 4, 4, 0) + data
    pixels = decode_image(b"GIF89a" + struct.pack("<HHBBB", 10, 8, 0x91, 1, 0) + palette + frame)
    assert pixels.shape == (8, 10, 3)
    assert pixels[0, 0].tolist() == [0, 255, 0]
    assert pixels[2, 3].tolist() == [255, 0, 0]


# --- every image-like file has a row -------------------------------------------------------------------------------

IMAGE_LIKE = ["a.heic", "b.AVIF", "c.jxl", "d.jfif", "e.jpe", "f.dng", "g.CR2", "h.psd", "i.svg", "j.exr", "k.ppm"]


def test_a_folder_lists_image_like_files_and_counts_the_others(tmp_path: Path) -> None:
    for name in [*IMAGE_LIKE, "x.txt", "x.json", "x.mp4", "x.xml", "x.md", "noext"]:
        (tmp_path / name).write_bytes(encoded(gradient(), "JPEG"))
    notes = SourceNotes()
    refs = list(list_images(InputSection(uri=str(tmp_path)), Storage(), notes=notes))
    assert sorted(Path(ref.uri).name for ref in refs) == sorted(IMAGE_LIKE)
    assert notes.skipped == {".txt": 1, ".json": 1, ".mp4": 1, ".xml": 1, ".md": 1, "no extension": 1}
    # Named like another format, and detected by its bytes.
    assert {decode_image(read_image(ref, Storage())).shape for ref in refs} == {(24, 40, 3)}


def test_heic_in_a_tar_is_read_and_located(tmp_path: Path) -> None:
    payload = heic(sample_image())
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.heic", "b.nef", "c.json"):
            header = tarfile.TarInfo(name)
            header.size = len(payload)
            tar.addfile(header, io.BytesIO(payload))
    refs = list(list_images(InputSection(uri=str(tmp_path / "x.tar")), Storage()))
    assert [ref.uri.removeprefix("tar://").split("::")[0] for ref in refs] == ["a.heic", "b.nef"]
    for ref in refs:
        found = decode_image(read_image(locate_image(ref.uri, Storage()), Storage()))
        np.testing.assert_array_equal(found, np.asarray(sample_image()))
