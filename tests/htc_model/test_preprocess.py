"""The network's input is the published pipeline's, to the last bit."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from htc_model.config import ResizeConfig, load_preset
from htc_model.preprocess import assemble_batch, build_batch, padded_size, resize_uint8, resized_size

HTC = load_preset("htc_r50_fpn")


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((427, 640), (800, 1199), (800, 1216)),
        ((640, 480), (1067, 800), (1088, 800)),
        ((170, 640), (354, 1333), (384, 1344)),
        ((33, 47), (800, 1139), (800, 1152)),
        ((1, 1), (800, 800), (800, 800)),
        ((1, 5000), (1, 1333), (32, 1344)),
        ((5000, 1), (1333, 1), (1344, 32)),
        ((800, 1333), (800, 1333), (800, 1344)),
        ((3000, 4000), (800, 1067), (800, 1088)),
    ],
)
def test_sizes(size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]) -> None:
    assert resized_size(*size, ResizeConfig()) == resized
    assert padded_size(*size, ResizeConfig()) == padded


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 10_007 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


# crc32 of cv2.resize(noise(height, width), (width, height), interpolation=cv2.INTER_LINEAR), OpenCV 4.14.0.
OPENCV_CRC = {
    ((427, 640), (800, 1199)): 0xF3369AE7,
    ((170, 640), (354, 1333)): 0xDEE300C5,
    ((33, 47), (800, 1139)): 0x250D1CF0,
    ((1600, 2400), (800, 1200)): 0xF6D75200,
    ((1200, 1601), (800, 1067)): 0x4B0B92F5,
    ((1000, 1500), (800, 1200)): 0xD1234E0C,
    ((1, 1), (800, 800)): 0x21E50ECD,
    ((1, 5000), (1, 1333)): 0x7C50258B,
    ((5000, 1), (1333, 1)): 0x48668893,
    ((2, 3), (533, 800)): 0xF3E560F5,
    ((97, 131), (20, 500)): 0x1AF063EB,
}


@pytest.mark.parametrize(("size", "new_size"), OPENCV_CRC, ids=str)
def test_resize_equals_opencv(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    resized = resize_uint8(torch.from_numpy(noise(*size)), new_size)
    assert resized.dtype == torch.uint8
    assert tuple(resized.shape) == (*new_size, 3)
    assert zlib.crc32(resized.contiguous().numpy().tobytes()) == OPENCV_CRC[size, new_size]


def test_resize_to_the_same_size_changes_nothing() -> None:
    image = torch.from_numpy(noise(20, 30))
    assert torch.equal(resize_uint8(image, (20, 30)), image)


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_a_plain_image_stays_plain(level: int) -> None:
    image = torch.full((33, 47, 3), level, dtype=torch.uint8)
    for size in [(800, 1139), (7, 5), (1, 1)]:
        assert (resize_uint8(image, size) == level).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_resizes_to_the_same_bits() -> None:
    images = [noise(427, 640), noise(427, 640)[:, ::-1]]
    on_cpu, on_gpu = build_batch(images, HTC), build_batch(images, HTC, "cuda")
    assert torch.equal(on_cpu.pixels, on_gpu.pixels.cpu())


def test_a_batch_is_normalised_and_padded_with_zeros() -> None:
    images = [noise(100, 180), noise(101, 181)]
    batch = build_batch(images, HTC)
    assert len(batch) == 2
    assert batch.original_sizes == [(100, 180), (101, 181)]
    assert batch.image_sizes == [(741, 1333), (744, 1333)]
    assert tuple(batch.pixels.shape) == (2, 3, 768, 1344)
    assert (batch.pixels[0, :, 741:] == 0).all()
    assert (batch.pixels[0, :, :, 1333:] == 0).all()
    resized = resize_uint8(torch.from_numpy(images[0]), (741, 1333)).double()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (HTC.resize.mean_rgb, HTC.resize.std_rgb))
    expected = ((resized - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(batch.pixels[0, :, :741, :1333].double(), expected, atol=1e-6, rtol=0)


def test_an_image_is_the_same_alone_and_in_a_batch() -> None:
    images = [noise(100, 180), noise(101, 181)]
    batch = build_batch(images, HTC)
    for image, pixels in zip(images, batch.pixels, strict=True):
        assert torch.equal(build_batch([image], HTC).pixels[0], pixels)


def test_read_only_and_flipped_arrays_are_taken() -> None:
    image = noise(30, 40)
    frozen = image.copy()
    frozen.flags.writeable = False
    assert torch.equal(build_batch([frozen], HTC).pixels, build_batch([image], HTC).pixels)
    assert torch.equal(build_batch([image[:, ::-1]], HTC).pixels, build_batch([image[:, ::-1].copy()], HTC).pixels)


def test_extreme_shapes_survive() -> None:
    for height, width in [(1, 1), (1, 5000), (5000, 1)]:
        batch = build_batch([noise(height, width)], HTC)
        assert torch.isfinite(batch.pixels).all()


def test_another_resize_section_is_followed() -> None:
    small = replace(HTC, resize=replace(HTC.resize, long_side=640, short_side=384, pad_multiple=64))
    assert tuple(build_batch([noise(427, 640)], small).pixels.shape) == (1, 3, 384, 576)


@pytest.mark.parametrize("images", [[], [noise(30, 40), noise(40, 30)]], ids=["none", "two shapes"])
def test_a_batch_of_no_or_several_shapes_is_refused(images: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one padded shape"):
        build_batch(images, HTC)


def test_images_on_the_device_already_give_the_same_batch() -> None:
    images = [noise(427, 640), noise(426, 640), noise(427, 640)]
    wanted = build_batch(images, HTC)
    found = assemble_batch([torch.from_numpy(image) for image in images], HTC)
    assert torch.equal(found.pixels, wanted.pixels)
    assert (found.image_sizes, found.original_sizes) == (wanted.image_sizes, wanted.original_sizes)
    with pytest.raises(ValueError, match="no images"):
        assemble_batch([], HTC)


def test_images_of_one_size_are_resized_together_as_one_by_one() -> None:
    images = torch.stack([torch.from_numpy(noise(97, 131)), torch.from_numpy(noise(97, 131)).flip(0)])
    together = resize_uint8(images, (20, 500))
    for image, resized in zip(images, together, strict=True):
        assert torch.equal(resize_uint8(image, (20, 500)), resized)


def test_what_is_cached_under_inference_mode_serves_other_callers() -> None:
    image = torch.from_numpy(noise(33, 47))
    with torch.inference_mode():
        wanted = resize_uint8(image, (71, 73))
        batch = build_batch([noise(33, 47)], HTC)
    assert torch.equal(resize_uint8(image, (71, 73)), wanted)
    assert torch.equal(build_batch([noise(33, 47)], HTC).pixels, batch.pixels)
