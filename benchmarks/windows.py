"""Measures reading a large BigTIFF by windows: MB/s and memory, beside rasterio alone.

    python benchmarks/windows.py [--side 20000] [--window 1024] [--rounds 3] [--file KEPT.tif]

The file is written for the purpose: side x side pixels of waves and noise in tiles of 512 x 512, deflate. "ours" reads
it through `open_windows`, as a run with tiles does: byte ranges by our storage, one version, upright RGB. The peer is
`rasterio.open(...).read(window=...)`, GDAL on the local file, with the bands put together to pixels. Both read every
window once, left to right, and add up its pixels; the sums must agree. The last line is one JSON object: decoded
megabytes per second of wall time, the median of interleaved rounds, the ratio of both, and the largest memory of the
process of each.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TILE = 512


def write_file(path: Path, side: int) -> None:
    """Write the image tile by tile."""
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 12, (TILE, TILE, 3))
    rows, columns = np.mgrid[:TILE, :TILE]
    profile = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "zlevel": 1}
    profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}
    shape = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **shape, photometric="RGB", BIGTIFF="YES", **profile) as sink:
        for top in range(0, side, TILE):
            for left in range(0, side, TILE):
                waves = [
                    90 + 80 * np.sin((rows + top) / 70 + channel) * np.cos((columns + left) / 90)
                    for channel in range(3)
                ]
                tile = (np.stack(waves, axis=-1) + np.roll(noise, (top // 7, left // 11), axis=(0, 1))).astype(np.uint8)
                height, width = min(TILE, side - top), min(TILE, side - left)
                sink.write(np.moveaxis(tile[:height, :width], -1, 0), window=Window(left, top, width, height))


def places(side: int, window: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield top, left, height and width of each window."""
    for top in range(0, side, window):
        for left in range(0, side, window):
            yield top, left, min(window, side - top), min(window, side - left)


def read_ours(path: Path, window: int) -> int:
    """Read all windows as a run with tiles does."""
    from pipeline.inputs import ImageRef, open_windows
    from pipeline.storage.storage import Storage

    image, _ = open_windows(ImageRef(str(path)), Storage())
    total = sum(int(image.read(*place).sum(dtype=np.int64)) for place in places(image.size[0], window))
    image.close()
    return total


def interleaved(bands: np.ndarray) -> np.ndarray:
    """Return [H, W, bands] of [bands, H, W], as every model and picture needs it."""
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def read_rasterio(path: Path, window: int) -> int:
    """Read all windows by rasterio alone."""
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(path) as image:
        return sum(
            int(interleaved(image.read(window=Window(left, top, width, height))).sum(dtype=np.int64))
            for top, left, height, width in places(image.height, window)
        )


def measure(reader: str, path: Path, window: int) -> dict[str, float]:
    """Read the file in a process of its own."""
    command = [sys.executable, __file__, "--only", reader, "--file", str(path), "--window", str(window)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run the rounds and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--only", choices=["ours", "rasterio"])
    options = parser.parse_args()
    if options.only:
        start = time.perf_counter()
        total = {"ours": read_ours, "rasterio": read_rasterio}[options.only](options.file, options.window)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": round(peak), "total": total}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "large.tif"
        if not path.exists():
            write_file(path, options.side)
        found: dict[str, list[dict[str, float]]] = {"ours": [], "rasterio": []}
        for number in range(options.rounds):
            for reader in sorted(found, reverse=number % 2 == 1):
                found[reader].append(measure(reader, path, options.window))
                print(f"round {number + 1}, {reader}: {found[reader][-1]}", flush=True)
        file_bytes = path.stat().st_size
    totals = {each["total"] for rounds in found.values() for each in rounds}
    if len(totals) != 1:
        raise SystemExit("The readers found different pixels.")
    decoded_mb = 3 * options.side**2 / 1e6
    rates = {name: [decoded_mb / each["seconds"] for each in rounds] for name, rounds in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["rasterio"], strict=True)]
    result = {
        "side": options.side,
        "window": options.window,
        "file_mb": round(file_bytes / 1e6),
        "mb_per_s": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
        "peak_mib": {name: max(each["peak_mib"] for each in rounds) for name, rounds in found.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
