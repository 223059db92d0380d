"""Runs thousands of damaged image files through a worker, from the file to its row.

Usage: python tests/support/fuzz_images.py FOLDER [COUNT] [SEED]

It runs in one process, as a worker does. The last line is JSON: rows by status, memory, and seconds. The same seed
makes the same files. The exit status is 0 if every file has a row and no unexpected exception was raised.
"""

import io
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the two folders come first
from PIL import Image  # noqa: E402

COUNT = 2100
# Small images need little. A damaged header that claims more is refused.
MAX_PIXELS = 4_000_000
FORESEEN = {"ok", "unreadable", "too_large"}

_MODES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True, "quality": 95}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "I;16", {}),
    ("PNG", "1", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "RGB", {"compression": "packbits"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "I;16", {}),
    ("TIFF", "CMYK", {}),
    ("GIF", "P", {}),
    ("GIF", "P", {"interlace": 1, "transparency": 0}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("BMP", "1", {}),
)


def source_files() -> list[tuple[str, bytes]]:
    """Valid small files of every format and of many modes, a few animated or rotated."""
    pixels = np.random.default_rng(7).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((61, 45))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation, EXIF 2.32, section 4.6.4
    files = [(kind, _encoded(_in_mode(image, mode), kind, options)) for kind, mode, options in _MODES]
    files.append(("JPEG", _encoded(image, "JPEG", {"exif": exif})))
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    files += [(kind, _encoded(image, kind, frames)) for kind in ("GIF", "WEBP", "TIFF", "PNG")]
    return files


def damaged_files(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield files as (damage, format, bytes), each damage and each source in turn."""
    rng = random.Random(seed)
    sources = source_files()
    for number in range(count):
        kind, payload = sources[number % len(sources)]
        other = rng.choice(sources)[1]
        name = list(DAMAGES)[number // len(sources) % len(DAMAGES)]
        yield name, kind, DAMAGES[name](payload, other, rng)


def _truncate(payload: bytes, _: bytes, rng: random.Random) -> bytes:
    return payload[: rng.randrange(len(payload))]


def _flip_bits(payload: bytes, _: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(payload)
    for _number in range(rng.choice([1, 2, 8, 64])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _flip_in_header(payload: bytes, _: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(payload)
    for _number in range(rng.choice([1, 1, 2, 3])):
        # After the signature, which the format is detected by; sizes, offsets and tables are here.
        damaged[rng.randrange(4, min(len(damaged), 160))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _splice(payload: bytes, other: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(4, min(len(payload), 400))
    return payload[:at] + other[rng.randrange(len(other)) :]


def _overwrite(payload: bytes, _: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(4, len(payload)), rng.choice([1, 4, 32])
    filling = rng.choice([b"\0", b"\xff", b"\x7f", rng.randbytes(1)]) * length
    return payload[:at] + filling + payload[at + length :]


def _repeat(payload: bytes, _: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(4, len(payload))
    end = min(len(payload), start + rng.choice([1, 16, 256]))
    return payload[:end] + payload[start:end] * rng.choice([1, 5, 50]) + payload[end:]


def _drop(payload: bytes, _: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(4, len(payload))
    return payload[:start] + payload[start + rng.choice([1, 7, 100]) :]


Damage = Callable[[bytes, bytes, random.Random], bytes]
DAMAGES: dict[str, Damage] = {
    "truncated": _truncate,
    "bits flipped": _flip_bits,
    "header flipped": _flip_in_header,
    "header spliced": _splice,
    "overwritten": _overwrite,
    "repeated": _repeat,
    "bytes dropped": _drop,
}


def write_files(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Write the files, and return each name's damage and format."""
    folder.mkdir(parents=True)
    made: dict[str, str] = {}
    for number, (damage, kind, payload) in enumerate(damaged_files(count, seed)):
        # All with one extension: the format is detected by the content.
        name = f"{number:05d}.jpg"
        (folder / name).write_bytes(payload)
        made[name] = f"{kind}, {damage}"
    return made


def segment_files(folder: Path) -> list[dict[str, Any]]:
    """Process every file in folder/in with a worker in this process; return the rows of `images`."""
    from pipeline.driver.run_job import worker_settings
    from pipeline.job_spec.job import load_spec
    from pipeline.messages import Assignment
    from pipeline.output.results import open_results
    from pipeline.runs.open import open_run
    from pipeline.storage.storage import Storage
    from pipeline.weights.fingerprint import compute_fingerprint
    from pipeline.worker.worker import Worker
    from tests.chaos.model import LoadContentModel
    from tests.chaos.plan import Plan

    values: dict[str, object] = {
        "input.uri": str(folder / "in"),
        "output.uri": str(folder / "out"),
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
        "images.max_pixels": MAX_PIXELS,
    }
    spec = load_spec(None, values)
    opened = open_run(spec, compute_fingerprint(spec.model).to_dict(), Storage(), run="fuzz")
    load = LoadContentModel(Plan(), driver_pid=0)
    worker = Worker(worker_settings(spec, "fuzz", load))
    worker.start()
    for index in opened.take_new_shards():
        worker.run_shard(opened.read_shard(index), Assignment(index, attempt=1, is_last=True))
    rows: list[dict[str, Any]] = open_results(spec.output.uri).images().to_pylist()
    return rows


def read_peak_mib() -> int:
    """The peak of this process; `getrusage` would include that of the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) // 1024 if found else 0


def main() -> int:
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else COUNT
    start = time.perf_counter()
    made = write_files(folder / "in", count, int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    rows = segment_files(folder)
    by_damage: dict[str, Counter[str]] = {}
    for row in rows:
        by_damage.setdefault(made[Path(row["uri"]).name].split(", ")[1], Counter())[row["status"]] += 1
    odd = [f"{made[Path(row['uri']).name]}: {row['error']}" for row in rows if row["status"] not in FORESEEN]
    report = {
        "files": count,
        "rows": len({row["uri"] for row in rows}),
        "statuses": dict(Counter(row["status"] for row in rows)),
        "by_damage": {name: dict(counts) for name, counts in by_damage.items()},
        "unforeseen": odd[:20],
        "peak_mib": read_peak_mib(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(report))
    return 0 if not odd and report["rows"] == count == len(rows) else 1


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    return image.convert(mode)


if __name__ == "__main__":
    sys.exit(main())
