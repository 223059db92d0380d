"""Measures the CPU milliseconds that decoding a JPEG file takes: Pillow alone, imagecodecs, torchvision.

Usage: python benchmarks/decode_jpeg.py [FOLDER] [--rounds 7]

Without a folder the example photos. The ways are interleaved, round by round, on one thread; the least of the rounds is
shown, so that other load matters little. Also counts, for each way, how often another Python thread ran while a file of
12 megapixels was decoded: with the interpreter's lock held it would be hardly ever. The last line is JSON.
"""

import argparse
import io
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.inputs.decode import decode_image, read_header
from pipeline.inputs.formats.jpeg_decoders import TurboJpeg, decode_with_imagecodecs, decode_with_torchvision

TICK_S = 0.001


def large_file() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG")
    return file.getvalue()


def ticks_during(call: Callable[[], object]) -> float:
    """Return the share of its chances that a thread had to run during the call."""
    thread = threading.Thread(target=call)
    start, ticks = time.perf_counter(), 0
    thread.start()
    while thread.is_alive():
        time.sleep(TICK_S)
        ticks += 1
    return round(ticks * TICK_S / (time.perf_counter() - start), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "examples" / "photos")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    payloads = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]
    decoders = {
        "pillow": None,
        "imagecodecs": TurboJpeg(decode_with_imagecodecs),
        "torchvision": TurboJpeg(decode_with_torchvision),
    }
    ways: dict[str, Callable[[bytes], object]] = {
        name: lambda payload, jpeg=jpeg: decode_image(payload, jpeg=jpeg) for name, jpeg in decoders.items()
    }
    ways["header"] = read_header
    for payload in payloads:
        wanted = decode_image(payload)
        if not all(np.array_equal(decode_image(payload, jpeg=jpeg), wanted) for jpeg in decoders.values()):
            raise SystemExit("the decoders' pixels differ")
    least_ms = dict.fromkeys(ways, float("inf"))
    for _ in range(options.rounds):
        for name, decode in ways.items():
            start = time.process_time()
            for payload in payloads:
                decode(payload)
            least_ms[name] = min(least_ms[name], (time.process_time() - start) / len(payloads) * 1000)
    large = large_file()
    ticks = {name: ticks_during(lambda jpeg=jpeg: decode_image(large, jpeg=jpeg)) for name, jpeg in decoders.items()}
    report = {
        "benchmark": "decode_jpeg", "images": len(payloads),
        "cpu_ms_per_image": {name: round(value, 3) for name, value in least_ms.items()},
        "other_thread_ran": ticks,
    }  # fmt: skip
    for name, value in least_ms.items():
        print(f"{name:12} {value:6.2f} ms")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
