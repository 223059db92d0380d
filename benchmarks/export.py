"""Measures `htc export`: instances per second and memory, beside a plain loop over the same tables.

    python benchmarks/export.py [--images 20000] [--rounds 3] [--formats coco,geojson]
    python benchmarks/export.py --flat [--images 1250000] [--rounds 1] [--formats coco] [--output KEPT] [--placed]

The output is written for the purpose: what the bundled model finds in the bundled photos, under new names. With --flat
it is one of ten million generated instances, compacted, and another of a tenth of them: memory must be nearly the same
for both; with --placed the images lie in ten UTM zones, and GeoJSON is in WGS 84. The peer, which holds everything,
reads the tenth only.

The peer for COCO reads the parts with pyarrow and writes them with `json.dump`, as a user's own script would; both
answers are compared. The last line is one JSON object: instances per second of wall time, the median of interleaved
rounds, and the largest memory of the process of each.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import large_output
import pyarrow.dataset as pads
import pyarrow.parquet as pq

import htc_batch
from pipeline.inputs.image_ref import image_id
from pipeline.job_spec.job import load_spec
from pipeline.output.commit import commit_shard
from pipeline.output.rows import ImageRow, InstanceRow
from pipeline.runs.open import open_run
from pipeline.storage.storage import Storage

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"
SHARD_IMAGES = 500
FINGERPRINT = {"preset": "htc_lite0_fpn", "weights_sha256": "a" * 64, "config_sha256": "0" * 64, "trained": True}


def write_output(folder: Path, images: int) -> Path:
    """Write an output of so many images: the photos' rows, repeated."""
    real = folder / "real"
    command = [sys.executable, "-m", "jobs", "run", str(PHOTOS), str(real), "--weights", "demo"]
    subprocess.run(command, check=True, capture_output=True)
    opened = htc_batch.open(str(real))
    image_rows = opened.images().to_pylist()
    instances: dict[str, list[dict[str, object]]] = {row["uri"]: [] for row in image_rows}
    for row in opened.instances().to_pylist():
        instances[row["uri"]].append(row)
    names = folder / "names.txt"
    uris = [f"/photos/{number:08d}.jpg" for number in range(images)]
    names.write_text("\n".join(uris))
    spec = load_spec(
        None,
        {"input.uri": str(names), "output.uri": str(folder / "out"), "compute.shard_images": SHARD_IMAGES},
    )
    storage = Storage()
    run = open_run(spec, FINGERPRINT, storage, run="many")
    for shard in range(run.shard_count):
        new_images, new_instances = [], []
        for ref in run.read_shard(shard).images:
            number = int(Path(ref.uri).stem)
            source = image_rows[number % len(image_rows)]
            known = {"image_id": image_id(ref.uri), "uri": ref.uri}
            kept = {name: value for name, value in source.items() if name in ImageRow.__dataclass_fields__}
            new_images.append(ImageRow(**{**kept, **known, "shard": shard}))
            new_instances += [
                InstanceRow(**{**{name: row[name] for name in InstanceRow.__dataclass_fields__}, **known})
                for row in instances[source["uri"]]
            ]
        commit_shard(storage, run.output_uri, run.name, shard, new_images, new_instances)
    run.close()
    return folder / "out"


def peer(output: Path, file: Path) -> None:
    """Write COCO JSON as a plain script does."""
    names = pads.dataset(str(output / "images")).to_table(columns=["uri", "width", "height"]).to_pylist()
    numbers = {row["uri"]: number for number, row in enumerate(names, 1)}
    annotations = []
    for part in sorted((output / "instances").rglob("*.parquet")):
        for row in pq.ParquetFile(part).read().to_pylist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": numbers[row["uri"]],
                    "category_id": row["category_id"],
                    "segmentation": row["mask"],
                    "area": row["area"],
                    "bbox": list(row["bbox"].values()),
                    "iscrowd": 0,
                    "score": row["score"],
                }
            )
    images = [{"id": numbers[row["uri"]], "file_name": row["uri"], **row} for row in names]
    with file.open("w") as sink:
        json.dump({"images": images, "annotations": annotations}, sink)


def timed(command: list[str]) -> tuple[float, float]:
    """Return the wall seconds and the largest memory in MiB of a process."""
    before = time.perf_counter()
    script = "import resource,subprocess,sys;subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL);"
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
    return time.perf_counter() - before, int(done.stdout) / 1024


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--formats")
    parser.add_argument("--placed", action="store_true", help="with --flat: images say where they lie")
    parser.add_argument("--flat", action="store_true", help="ten million instances, and a tenth of them")
    parser.add_argument("--output", type=Path, help="with --flat: a compacted output of benchmarks/query.py --folder")
    parser.add_argument("--peer", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(*options.peer)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.flat:
            formats = (options.formats or "coco").split(",")
            result = measure_flat(folder, options, formats)
        else:
            formats = (options.formats or "coco,geojson,yolo").split(",")
            output = write_output(folder, options.images or 20_000)
            result = measure(output, folder, options.rounds or 3, formats)
    result["own_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result))


def export(output: Path, chosen: str, target: Path) -> tuple[float, float]:
    """Run `htc export`; return its wall seconds and largest memory in MiB."""
    command = [sys.executable, "-m", "jobs", "export", str(output), "--format", chosen, "--to", str(target)]
    return timed([*command, "--image-files", "none"])


def run_peer(output: Path, file: Path) -> tuple[float, float]:
    """Run the peer; return its wall seconds and largest memory in MiB."""
    return timed([sys.executable, __file__, "--peer", str(output), str(file)])


def measure(output: Path, folder: Path, rounds: int, formats: list[str]) -> dict[str, object]:
    """Measure every format and the peer in each round."""
    instances = count_instances(output)
    taken: list[dict[str, float]] = []
    for number in range(rounds):
        each: dict[str, float] = {}
        for chosen in formats:
            seconds, memory = export(output, chosen, folder / f"{chosen}-{number}")
            each |= {f"{chosen}_per_s": round(instances / seconds), f"{chosen}_mib": round(memory)}
        seconds, memory = run_peer(output, folder / "peer.json")
        taken.append(each | {"peer_coco_per_s": round(instances / seconds), "peer_mib": round(memory)})
    ours = json.loads((folder / "coco-0" / "annotations.json").read_text())["annotations"]
    theirs = json.loads((folder / "peer.json").read_text())["annotations"]
    same = sorted((row["area"], row["segmentation"]["counts"]) for row in ours) == sorted(
        (row["area"], row["segmentation"]["counts"]) for row in theirs
    )
    result: dict[str, object] = {
        "benchmark": "export",
        "compares": "htc export with a loop over pyarrow and json.dump, both as whole processes",
        "instances": instances,
        "same_masks": same,
    }
    result |= {key: round(statistics.median(each[key] for each in taken)) for key in taken[0]}
    ratio = statistics.median(each["coco_per_s"] / each["peer_coco_per_s"] for each in taken)
    return result | {"ratios": {"coco_per_s": round(ratio, 2)}, "rounds": taken}


def measure_flat(folder: Path, options: argparse.Namespace, formats: list[str]) -> dict[str, object]:
    """Measure every format on all instances and on a tenth of them, and the peer on the tenth."""
    images = options.images or 1_250_000
    outputs = {"whole": options.output or folder / "whole", "tenth": folder / "tenth"}
    for name, count in (("whole", images), ("tenth", images // 10)):
        if not outputs[name].is_dir():
            large_output.write_run(outputs[name], count, -(-count // SHARD_IMAGES), is_placed=options.placed)
            large_output.compact(outputs[name])
    counts = {name: count_instances(each) for name, each in outputs.items()}
    taken: list[dict[str, float]] = []
    for _ in range(options.rounds or 1):
        each: dict[str, float] = {}
        for name, source in outputs.items():
            for chosen in formats:
                seconds, memory = export(source, chosen, folder / "exported")
                each |= {f"{name}_{chosen}_per_s": round(counts[name] / seconds), f"{name}_{chosen}_mib": round(memory)}
                shutil.rmtree(folder / "exported")
        seconds, memory = run_peer(outputs["tenth"], folder / "peer.json")
        taken.append(each | {"tenth_peer_per_s": round(counts["tenth"] / seconds), "tenth_peer_mib": round(memory)})
    middle = {key: round(statistics.median(each[key] for each in taken)) for key in taken[0]}
    growth = {f"{chosen}_mib": middle[f"whole_{chosen}_mib"] / middle[f"tenth_{chosen}_mib"] for chosen in formats}
    result: dict[str, object] = {"benchmark": "export", "compares": "htc export of all instances and of a tenth"}
    result |= {f"instances_{name}": count for name, count in counts.items()}
    ratios = {f"whole_to_tenth_{key}": round(value, 2) for key, value in growth.items()}
    return result | middle | {"ratios": ratios, "rounds": taken}


def count_instances(output: Path) -> int:
    """Return the number of rows in the parts of `instances`."""
    return sum(pq.ParquetFile(part).metadata.num_rows for part in (output / "instances").rglob("*.parquet"))


if __name__ == "__main__":
    main()
