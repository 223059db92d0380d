"""Faster decoders of ordinary JPEG files than Pillow; Pillow decodes what they leave, and decides about damage.

imagecodecs brings libjpeg-turbo, as Pillow does, and gives the same pixels where both are built alike; it takes half
the CPU time, because it writes RGB into one array and no other copy is made. torchvision's decoder is as fast and takes
its place where imagecodecs is missing; torchvision 0.29 calls it deprecated. Either is used only for the kinds of file
(sampling, progressive or not) for which it gave Pillow's pixels when it was made.
"""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs.formats.jpeg import JpegFrame, JpegKind, read_frame

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]

# As EXIF's orientation says (EXIF 2.32, section 4.6.4), on [H, W, 3].
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
# Odd, so that the edges of blocks and of subsampled pairs are met, and larger than a block of 16.
_PROBE_SIZE = (37, 51)


class JpegDecoder(Protocol):
    """Decodes some JPEG files."""

    def decode(self, payload: bytes, frame: JpegFrame) -> Pixels | None:
        """Return [H, W, 3] uint8 RGB as stored, not upright, contiguous and writable; None for what Pillow decides."""


class TurboJpeg:
    """libjpeg-turbo without Pillow and without the interpreter's lock.

    Attributes:
        kinds: of the files that it decodes.
        refused: kinds of which its pixels differ from Pillow's here.
    """

    def __init__(self, decode: Callable[[bytes], Pixels]) -> None:
        """Compare it with Pillow, on a small image of each kind.

        Args:
            decode: `decode_with_imagecodecs` or `decode_with_torchvision`.

        Raises:
            ImportError, AttributeError, RuntimeError: there is no such decoder here.
        """
        self._decode = decode
        same: dict[JpegKind, bool] = {}
        for payload in _probes():
            frame = read_frame(payload)
            if frame is None:
                raise RuntimeError("a JPEG written by Pillow is not understood")
            with Image.open(io.BytesIO(payload)) as image:
                wanted = np.asarray(image.convert("RGB"))
            is_same = np.array_equal(decode(payload), wanted)
            same[frame.kind] = same.get(frame.kind, True) and is_same
        self.kinds = frozenset(kind for kind, is_same in same.items() if is_same)
        self.refused = frozenset(same) - self.kinds

    def decode(self, payload: bytes, frame: JpegFrame) -> Pixels | None:
        """Decode a file of one of the `kinds`."""
        if frame.kind not in self.kinds:
            return None
        try:
            return self._decode(payload)
        except RuntimeError:
            # Damaged or cut off; Pillow names the reason.
            return None


class NvJpeg:
    """nvJPEG through torchvision, on a CUDA device. Its pixels differ from Pillow's by a few grey levels."""

    def __init__(self, device: str = "cuda") -> None:
        """Decode a small file on the device.

        Raises:
            RuntimeError: there is no such device, or torchvision was built without nvJPEG.
        """
        self._device = device
        _decode_on_cuda(next(_probes()), device)

    def decode(self, payload: bytes, frame: JpegFrame) -> Pixels | None:
        """Decode a file; None for a damaged one."""
        try:
            return _decode_on_cuda(payload, self._device)
        except RuntimeError:
            return None


def make_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels as EXIF's orientation 1 to 8 says, contiguous."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _probes() -> Iterator[bytes]:
    """Yield small JPEG files of every kind that Pillow writes: gray, 4:4:4, 4:2:2, 4:2:0, 4:1:1, also progressive."""
    height, width = _PROBE_SIZE
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [rows * 7 + columns * 3, rows * 2 - columns * 11, (rows - 18) ** 2 // 3 + columns]
    image = Image.fromarray((np.stack(waves, axis=-1) % 256).astype(np.uint8))
    for is_progressive in (False, True):
        for quality in (60, 95):
            for subsampling in (0, 1, 2, "4:1:1"):
                yield _encoded(image, quality=quality, progressive=is_progressive, subsampling=subsampling)
            yield _encoded(image.convert("L"), quality=quality, progressive=is_progressive)


def _encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", **options)
    return file.getvalue()


def decode_with_imagecodecs(payload: bytes) -> Pixels:
    """Decode to [H, W, 3] uint8 RGB; raises RuntimeError for what libjpeg refuses."""
    import imagecodecs

    pixels: Pixels = imagecodecs.jpeg8_decode(payload, outcolorspace="RGB")
    return pixels


def decode_with_torchvision(payload: bytes) -> Pixels:
    """Decode to [H, W, 3] uint8 RGB; raises RuntimeError for what libjpeg refuses."""
    import torch
    from torchvision.io import ImageReadMode

    # Not `torchvision.io.decode_jpeg`, which warns at every call that it is deprecated.
    return _to_array(torch.ops.image.decode_jpeg(_tensor(payload), ImageReadMode.RGB.value, False))


def _decode_on_cuda(payload: bytes, device: str) -> Pixels:
    from torchvision.io import ImageReadMode, decode_jpeg

    return _to_array(decode_jpeg(_tensor(payload), mode=ImageReadMode.RGB, device=device).cpu())


def _tensor(payload: bytes) -> "Tensor":
    import torch

    # A copy of the encoded bytes: torch supports only writable buffers.
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8)


def _to_array(channels_first: "Tensor") -> Pixels:
    pixels: Pixels = channels_first.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels)
