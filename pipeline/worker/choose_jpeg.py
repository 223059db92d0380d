"""Chooses a worker's decoder of JPEG files, once, at its start."""

import logging

import torch

from pipeline.inputs.formats.jpeg_decoders import (
    JpegDecoder,
    NvJpeg,
    TurboJpeg,
    decode_with_imagecodecs,
    decode_with_torchvision,
)
from pipeline.job_spec.job import ImagesSection

log = logging.getLogger(__name__)


def choose_jpeg_decoder(images: ImagesSection, device: torch.device) -> JpegDecoder | None:
    """Return the decoder that the spec asks for; None where Pillow has to decode all files.

    Args:
        device: of the model; nvJPEG needs CUDA, and without it the exact decoder takes its place.
    """
    if images.jpeg_decoder == "nvjpeg":
        if device.type == "cuda":
            return NvJpeg(str(device))
        log.warning("images.jpeg_decoder is nvjpeg, and this worker has no CUDA device: it decodes exactly, on the CPU")
    decoder = _find_exact()
    if decoder is None:
        log.warning("neither imagecodecs nor torchvision decodes JPEG here; Pillow decodes it")
    elif decoder.refused:
        count = len(decoder.refused)
        log.warning("libjpeg-turbo's pixels differ from Pillow's for %d kinds of JPEG; Pillow decodes them", count)
    return decoder


def _find_exact() -> TurboJpeg | None:
    for decode in (decode_with_imagecodecs, decode_with_torchvision):
        try:
            return TurboJpeg(decode)
        except (ImportError, AttributeError, RuntimeError, OSError) as error:
            log.info("%s: %s", decode.__name__, error)
    return None
