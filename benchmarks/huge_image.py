"""Segments one huge image as a whole job: memory of all processes over time, speed, and what the seams cut.

    python benchmarks/huge_image.py [--side 20000] [--tiles 1024:128] [--format tif] [--keep FOLDER] [--picture FILE]

Writes a mosaic of the example photos (with rows and columns shifted, so that people lie everywhere), then runs
`htc run` on it with one worker, and samples the resident memory of every process below. Afterwards:

- how many instances lie over a border of a tile, and how many no tile shows as a whole (these were joined);
- of a sample of these, each is segmented again in one window with the object in its middle, as if there were no seam:
  how many are found there, with which IoU and which ratio of areas;
- with --picture, a crop at a seam with the masks and the borders of the tiles; with --curve, the memory as a picture.

The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MIB = 2**20
SAMPLE_EVERY_S = 0.5
BLOCK = 512
LEAST_DRAWN = 0.5


def write_mosaic(path: Path, side: int, *, seed: int = 0) -> None:
    """Write a mosaic of the example photos as tiled TIFF (BigTIFF), or as JPEG or PNG, by its suffix."""
    import numpy as np
    from PIL import Image

    photos = [np.asarray(Image.open(each).convert("RGB")) for each in sorted((ROOT / "examples/photos").glob("*.jpg"))]
    rng = np.random.default_rng(seed)

    def band(height: int) -> Any:
        pixels = np.zeros((height, side, 3), np.uint8)
        x = -int(rng.integers(0, 300))
        while x < side:
            photo = photos[int(rng.integers(len(photos)))]
            rows = np.resize(photo, (height, photo.shape[1], 3)) if photo.shape[0] < height else photo[:height]
            begin, end = max(x, 0), min(x + photo.shape[1], side)
            pixels[:, begin:end] = rows[:, begin - x : end - x]
            x += photo.shape[1]
        return pixels

    heights = [342] * (side // 342) + ([side % 342] if side % 342 else [])
    if path.suffix == ".tif":
        import rasterio
        from rasterio.windows import Window

        options = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "zlevel": 1}
        with rasterio.open(
            path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", BIGTIFF="YES",
            photometric="RGB", interleave="pixel", **options,
        ) as file:  # fmt: skip
            rest, top = np.zeros((0, side, 3), np.uint8), 0
            for height in heights:
                rest = np.concatenate([rest, band(height)])
                whole = len(rest) if height is heights[-1] and top + len(rest) == side else len(rest) // BLOCK * BLOCK
                if whole:
                    file.write(rest[:whole].transpose(2, 0, 1), window=Window(0, top, side, whole))
                    rest, top = rest[whole:], top + whole
        return
    image = Image.new("RGB", (side, side))
    top = 0
    for height in heights:
        image.paste(Image.fromarray(band(height)), (0, top))
        top += height
    image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {"compress_level": 1}))


def sample_memory(root: Any) -> dict[str, float]:
    """Return the MiB of the worker (resident), of the driver, and of all processes (private, and shared once)."""
    import psutil

    worker = driver = private = shared = 0
    processes = [root]
    with suppress(psutil.Error):
        processes += root.children(recursive=True)
    for process in processes:
        with suppress(psutil.Error, OSError, ValueError, KeyError):
            fields = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                if ":" in line
            )
            rss = 1024 * int(fields["VmRSS"].split()[0])
            private += 1024 * int(fields["RssAnon"].split()[0])
            shared = max(shared, 1024 * int(fields["RssShmem"].split()[0]))
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and "IDLE" not in line:
                worker = max(worker, rss)
            if process.pid == root.pid:
                driver = rss
    return {"worker": worker / MIB, "driver": driver / MIB, "all": (private + shared) / MIB}


def run_job(image: Path, output: Path, tiles: str) -> dict[str, Any]:
    """Run the job; return its seconds and its memory over time."""
    import psutil

    command = [sys.executable, "-m", "jobs", "run", str(image.parent), str(output), "--tiles", tiles]
    command += ["--workers", "1", "--max-detections", "100"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    with (output.parent / "run.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=output.parent, env=environment)
        root = psutil.Process(process.pid)
        curve: list[tuple[float, dict[str, float]]] = []
        while process.poll() is None:
            curve.append((round(time.monotonic() - start, 1), sample_memory(root)))
            time.sleep(SAMPLE_EVERY_S)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit((output.parent / "run.log").read_text()[-3000:])
    summary = json.loads(next((output / "runs").glob("*/summary.json")).read_text())
    return {"seconds": seconds, "curve": curve, "summary": summary}


def read_rows(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the instances and the image's row."""
    import pyarrow.dataset as ds

    rows = ds.dataset(str(output / "instances"), format="parquet").to_table().to_pylist()
    (image,) = ds.dataset(str(output / "images"), format="parquet").to_table().to_pylist()
    return rows, image


def seam_facts(rows: list[dict[str, Any]], grid: Any) -> tuple[dict[str, int], list[int]]:
    """Count the instances on borders of tiles; also return those that no tile shows as a whole."""
    import numpy as np

    boxes = np.array([[row["bbox"][key] for key in ("x", "y", "width", "height")] for row in rows])
    x0, y0, x1, y1 = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    tile_h, tile_w = grid.tile_size
    tops, lefts = np.array(grid.tops)[:, None], np.array(grid.lefts)[:, None]
    inside = ((tops <= y0) & (tops + tile_h >= y1)).any(axis=0) & ((lefts <= x0) & (lefts + tile_w >= x1)).any(axis=0)

    def crossed(edges: Any, low: Any, high: Any) -> Any:
        return ((edges > low) & (edges < high)).any(axis=0)

    on_border = crossed(lefts[1:], x0, x1) | crossed(lefts[:-1] + tile_w, x0, x1)
    on_border |= crossed(tops[1:], y0, y1) | crossed(tops[:-1] + tile_h, y0, y1)
    both = (crossed(lefts[1:], x0, x1) | crossed(lefts[:-1] + tile_w, x0, x1)) & (
        crossed(tops[1:], y0, y1) | crossed(tops[:-1] + tile_h, y0, y1)
    )
    counts = {
        "instances": len(rows),
        "on_a_border": int(on_border.sum()),
        "on_borders_both_ways": int(both.sum()),
        "whole_in_no_tile": int((~inside).sum()),
    }
    return counts, np.flatnonzero(~inside).tolist()


def window_around(box: dict[str, float], size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Return top, left, height, width of a window of a tile's size with the box in its middle."""
    height, width = min(side, size[0]), min(side, size[1])
    top = int(min(max(box["y"] + box["height"] / 2 - height / 2, 0), size[0] - height))
    left = int(min(max(box["x"] + box["width"] / 2 - width / 2, 0), size[1] - width))
    return top, left, height, width


def compare_without_seam(
    rows: list[dict[str, Any]], places: list[int], windows: Any, side: int, *, most: int
) -> dict[str, Any]:
    """Segment the surroundings of joined instances in one window each; return how they agree."""
    import numpy as np
    import torch

    from htc_model.inference.cpu_network import optimise_for_cpu
    from htc_model.masks.encode import encode_detections
    from htc_model.masks.many_runs import ForegroundRuns, intersection_areas
    from htc_model.preprocess import build_batch
    from pipeline.job_spec.model import ModelSection
    from pipeline.worker.segmenter import load_model

    size = windows.size
    model = optimise_for_cpu(load_model(ModelSection.model_validate({"weights": "demo"})))
    fits = [p for p in places if max(rows[p]["bbox"]["width"], rows[p]["bbox"]["height"]) < 0.8 * side]
    # Sure ones: of a model's doubts, the next window knows nothing.
    sure = [p for p in fits if rows[p]["score"] >= 0.5]
    chosen = np.random.default_rng(0).permutation(sure)[:most].tolist()
    ious, ratios = [], []
    for place in chosen:
        row = rows[place]
        top, left, height, width = window_around(row["bbox"], size, side)
        batch = build_batch([windows.read(top, left, height, width)], model.config)
        with torch.inference_mode():
            found = encode_detections(model.infer(batch)[0])
        ours = runs_of([row["mask"]["counts"]], size).crop(np.array([[left, top, width, height]], np.float64))
        same = [i for i, label in enumerate(found.labels.tolist()) if model.config.classes[label] == row["category"]]
        if not same or not found.masks:
            ious.append(0.0)
            continue
        theirs = runs_of([found.masks[i]["counts"].decode() for i in same], (height, width))
        repeated = ForegroundRuns.concatenate([ours] * len(same))
        shared = intersection_areas(repeated, theirs)
        areas = theirs.areas()
        iou = shared / (ours.areas()[0] + areas - shared)
        best = int(iou.argmax())
        ious.append(float(iou[best]))
        if iou[best] >= 0.5:
            ratios.append(row["area"] / int(areas[best]))
    return {
        "compared": len(chosen),
        "score_at_least": 0.5,
        "found_without_seam": len(ratios),
        "median_iou": round(float(np.median(ious)), 3) if ious else None,
        "area_ratio_quartiles": [round(float(q), 3) for q in np.quantile(ratios, [0.25, 0.5, 0.75])]
        if ratios
        else None,
    }


def runs_of(counts: list[str], size: tuple[int, int]) -> Any:
    """Decode masks of one size to runs."""
    import numpy as np

    from htc_model.masks.many_runs import decode_counts, join_texts

    return decode_counts(*join_texts(counts), np.tile(np.array(size, np.int64), (len(counts), 1))).runs()


def draw_seam(path: Path, rows: list[dict[str, Any]], places: list[int], windows: Any, grid: Any) -> None:
    """Draw a crop around a joined instance: masks in colours, borders of tiles dashed."""
    import numpy as np
    from PIL import Image, ImageDraw

    size = windows.size
    sure = [p for p in places if rows[p]["score"] >= 0.7] or places
    best = sorted(sure, key=lambda p: -_corner_score(rows[p]["bbox"], grid))[:60]
    # The model's own doubles would hide the seam.
    place = next((p for p in best if _is_alone(rows, p)), best[0])
    box = rows[place]["bbox"]
    height, width = min(520, size[0]), min(760, size[1])
    top = int(min(max(box["y"] + box["height"] / 2 - height / 2, 0), size[0] - height))
    left = int(min(max(box["x"] + box["width"] / 2 - width / 2, 0), size[1] - width))
    pixels = windows.read(top, left, height, width).astype(np.float64)
    rng = np.random.default_rng(3)
    for row in rows:
        b = row["bbox"]
        outside = (
            b["x"] > left + width or b["x"] + b["width"] < left or b["y"] > top + height or b["y"] + b["height"] < top
        )
        if row["score"] < LEAST_DRAWN or outside:
            continue
        crop = runs_of([row["mask"]["counts"]], size).crop(np.array([[left, top, width, height]], np.float64))
        flat = np.zeros(height * width, bool)
        for begin, end in zip(crop.begins, crop.ends, strict=True):
            flat[begin:end] = True
        mask = flat.reshape((width, height)).T
        pixels[mask] = 0.45 * pixels[mask] + 0.55 * rng.integers(60, 255, 3)
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    tile_h, tile_w = grid.tile_size
    for x in sorted({*grid.lefts, *(each + tile_w for each in grid.lefts)}):
        if left < x < left + width:
            for y in range(0, height, 12):
                draw.line((x - left, y, x - left, y + 6), fill=(255, 255, 0), width=2)
    for y in sorted({*grid.tops, *(each + tile_h for each in grid.tops)}):
        if top < y < top + height:
            for x in range(0, width, 12):
                draw.line((x, y - top, x + 6, y - top), fill=(255, 255, 0), width=2)
    image.save(path, quality=85)


def _is_alone(rows: list[dict[str, Any]], place: int) -> bool:
    """Return whether no other drawn instance covers a third of an instance's box."""
    own = rows[place]["bbox"]
    for number, row in enumerate(rows):
        box = row["bbox"]
        across = min(own["x"] + own["width"], box["x"] + box["width"]) - max(own["x"], box["x"])
        down = min(own["y"] + own["height"], box["y"] + box["height"]) - max(own["y"], box["y"])
        is_near = number != place and row["score"] >= LEAST_DRAWN and across > 0 and down > 0
        if is_near and across * down > own["width"] * own["height"] / 3:
            return False
    return True


def _corner_score(box: dict[str, float], grid: Any) -> float:
    """Prefer objects that borders cut both ways, then large ones, not larger than the picture."""
    tile_h, tile_w = grid.tile_size
    xs, ys = [*grid.lefts, *(x + tile_w for x in grid.lefts)], [*grid.tops, *(y + tile_h for y in grid.tops)]
    across = any(box["x"] + 20 < x < box["x"] + box["width"] - 20 for x in xs)
    down = any(box["y"] + 20 < y < box["y"] + box["height"] - 20 for y in ys)
    area = min(box["width"], 700) * min(box["height"], 480)
    return area * (1 + 3 * (across and down)) * (box["width"] < 740 and box["height"] < 500)


def draw_curve(path: Path, curve: list[tuple[float, dict[str, float]]]) -> None:
    """Draw the memory over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.8))
    seconds = [each for each, _ in curve]
    for key, label in (("all", "all processes"), ("worker", "worker, resident"), ("driver", "driver, resident")):
        axes.plot(seconds, [sample[key] / 1024 for _, sample in curve], label=label)
    axes.axhline(4e9 / 2**30, color="grey", linestyle=":", label="4 GB")
    axes.set(xlabel="seconds", ylabel="GiB", ylim=(0, None), xlim=(0, None))
    axes.legend(fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--tiles", default="1024:128")
    parser.add_argument("--format", choices=["tif", "jpg", "png"], default="tif")
    parser.add_argument("--keep", type=Path, help="a folder for image and output, which stay; an image there is used")
    parser.add_argument("--picture", type=Path, help="draw a seam into this file")
    parser.add_argument("--curve", type=Path, help="draw the memory into this file (.svg, .png)")
    parser.add_argument("--compare", type=int, default=40, help="joined instances that are segmented again")
    options = parser.parse_args()
    from pipeline.inputs.image_ref import ImageRef
    from pipeline.inputs.windows import open_windows
    from pipeline.job_spec.job import JobSpec
    from pipeline.storage.storage import Storage
    from pipeline.worker.tiling import TileGrid

    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        image = folder / "input" / f"mosaic.{options.format}"
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            write_mosaic(image, options.side)
        output = folder / f"output-{time.time_ns()}"
        job = run_job(image, output, options.tiles)
        rows, row = read_rows(output)
        spec = JobSpec.model_validate({"input": {"uri": "i"}, "output": {"uri": "o"}, "tiles": options.tiles})
        assert spec.tiles is not None
        size = (row["height"], row["width"])
        grid = TileGrid.plan(*size, spec.tiles)
        counts, joined = seam_facts(rows, grid)
        file_mib = round(image.stat().st_size / MIB)
        windows, _ = open_windows(ImageRef(str(image)), Storage(), max_pixels=2**29)
        compared = compare_without_seam(rows, joined, windows, spec.tiles.side, most=options.compare)
        if options.picture:
            draw_seam(options.picture, rows, joined, windows, grid)
        if options.curve:
            draw_curve(options.curve, job["curve"])
    curve = job["curve"]
    peak = {key: round(max(sample[key] for _, sample in curve)) for key in ("worker", "driver", "all")}
    megapixels = size[0] * size[1] / 1e6
    step = max(1, len(curve) // 60)
    print(
        json.dumps(
            {
                "benchmark": "huge_image",
                "size": size,
                "format": options.format,
                "file_mib": file_mib,
                "tiles": len(grid),
                "seconds": round(job["seconds"], 1),
                "megapixels_per_s": round(megapixels / job["seconds"], 2),
                "peak_mib": peak,
                "seams": counts,
                "joined_against_one_window": compared,
                "status": row["status"],
                "curve_keys": ["seconds", "worker", "driver", "all"],
                "curve": [
                    [at, *(round(sample[key]) for key in ("worker", "driver", "all"))] for at, sample in curve[::step]
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
