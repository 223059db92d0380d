"""The jobs that `benchmarks/vs_ray_data.py` compares, each for a process of its own.

All of them decode the same files and call the same model object in batches of one image, and write the same columns
with masks. The model object writes a line into a log for each call, so that start-up, work and end can be separated
alike, and images that are done twice are counted alike.

htc        `htc_batch.run`, as `htc run` calls it.
ray_data   Ray Data as its documentation advises: files read as binary rows, a pool of actors that load the model once,
           the order of rows not preserved, checkpoints by path, one row per image with the list of its instances.
bare       a loop in one process, or in several that share the images; the tables are written once, at the end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from htc_model.structures import ImageBatch, RawDetections
    from pipeline.job_spec.model import ModelSection
    from pipeline.output.rows import ImageRow, InstanceRow

ROOT = Path(__file__).resolve().parent.parent
# (height, width) of the image that ends the process which segments it.
LETHAL_SIZE = (67, 131)


@dataclass(frozen=True)
class Job:
    """What an engine is to do.

    photos: the folder of the images. output: the folder for tables. calls: the folder for the model's logs.
    workers: processes with a model. shard: images per shard, block or file of tables.
    small: a short side of 160 pixels instead of 800, to try the benchmark itself.
    catches: whether the function given to Ray Data turns an exception into a row, as htc does.
    max_errored_blocks, max_task_retries: Ray Data's settings; None for its defaults.
    extra_cpus: of Ray Data's Ray, for its own tasks beside the model's actors.
    """

    photos: str
    output: str
    calls: str
    preset: str
    weights: str
    workers: int
    shard: int
    small: bool = False
    catches: bool = True
    max_errored_blocks: int | None = None
    max_task_retries: int | None = None
    extra_cpus: int = 1

    def section(self) -> "ModelSection":
        """Return the model section of the spec."""
        from pipeline.job_spec.model import ModelSection

        return ModelSection(preset=self.preset, weights=self.weights)


class RecordedModel:
    """The network, which logs each call as one line: when it began and ended (Unix time), and how many images."""

    def __init__(self, model: Any, log: Path) -> None:
        self._model = model
        self.config = model.config
        self._log = log.open("a", buffering=1)

    def infer(self, batch: "ImageBatch") -> "list[RawDetections]":
        """Segment a batch; an image of LETHAL_SIZE ends the process instead."""
        if LETHAL_SIZE in [tuple(size) for size in batch.original_sizes]:
            os.kill(os.getpid(), signal.SIGKILL)
        started = time.time()
        found: list[RawDetections] = self._model.infer(batch)
        self._log.write(f"{started:.6f} {time.time():.6f} {len(batch)}\n")
        return found


def load_recorded(job: Job, section: "ModelSection") -> RecordedModel:
    """Load the model and prepare it for a CPU as a worker does, with one thread, in every program alike."""
    import torch

    from htc_model.inference.cpu_network import optimise_for_cpu
    from htc_model.network.detector import build_model
    from pipeline.worker.memory import keep_freed_memory
    from pipeline.worker.segmenter import load_model

    torch.set_num_threads(1)
    keep_freed_memory()
    model: Any = load_model(section)
    if job.small:
        config = replace(model.config, resize=replace(model.config.resize, short_side=160, long_side=267))
        smaller = build_model(config).eval()
        smaller.load_state_dict(model.state_dict())
        model = smaller
    model = optimise_for_cpu(model)
    folder = Path(job.calls)
    folder.mkdir(parents=True, exist_ok=True)
    return RecordedModel(model, folder / f"{os.getpid()}.txt")


class Segment:
    """Encoded images in, rows of both tables out: for the engines that bring no such thing of their own."""

    def __init__(self, job: Job) -> None:
        from pipeline.worker.segmenter import Segmenter, pick_device

        self._job = job
        model = load_recorded(job, job.section())
        self._segmenter = Segmenter(model, pick_device(0.0), batch_size=1)

    def rows(self, path: str, payload: bytes) -> "tuple[ImageRow, list[InstanceRow]]":
        """Return the image's row and those of its instances.

        Raises:
            ImageError: it cannot be decoded, and the job does not catch that.
        """
        from pipeline.errors import ImageError
        from pipeline.inputs.decode import decode_image
        from pipeline.inputs.image_ref import ImageRef
        from pipeline.messages import ImageFailure
        from pipeline.output.rows import build_image_row, build_instance_rows
        from pipeline.worker.segmenter import DecodedImage

        ref, name = ImageRef(path, len(payload)), self._segmenter.model.config.name
        try:
            pixels = decode_image(payload)
            ((_, raw),) = self._segmenter.segment([DecodedImage(0, path, pixels)])
            if isinstance(raw, ImageFailure):
                return build_image_row(ref, shard=0, model=name, status=raw.status, error=raw.reason), []
            found = build_instance_rows(ref, self._segmenter.encode(raw), self._segmenter.model.config)
        except ImageError as error:
            if not self._job.catches:
                raise
            return build_image_row(ref, shard=0, model=name, status=error.status, error=error.reason), []
        size = pixels.shape[0], pixels.shape[1]
        return build_image_row(ref, shard=0, model=name, size=size, instances=len(found)), found

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Segment a block of Ray Data: columns `path` and `bytes` in; `path`, those of `images`, and `found` out."""
        import pyarrow as pa

        from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA

        paths = batch["path"].to_pylist()
        rows = [self.rows(path, data.as_py()) for path, data in zip(paths, batch["bytes"], strict=True)]
        images = pa.Table.from_pylist([asdict(image) for image, _ in rows], schema=IMAGES_SCHEMA)
        kind = pa.list_(pa.struct(list(INSTANCES_SCHEMA)))
        found = pa.array([[asdict(each) for each in instances] for _, instances in rows], type=kind)
        return images.append_column("path", pa.array(paths)).append_column("found", found).replace_schema_metadata()


def photos_of(job: Job) -> list[Path]:
    """Return the images in the order of their names."""
    return sorted(Path(job.photos).iterdir())


def run_htc(job: Job) -> None:
    """Run the job with this project, as `htc run` does."""
    import htc_batch as htc

    values = {
        "input.uri": job.photos, "output.uri": job.output, "model.preset": job.preset, "model.weights": job.weights,
        "compute.workers": job.workers, "compute.shard_images": job.shard, "compute.batch_size": 1,
    }  # fmt: skip
    summary = htc.run(htc.load_spec(None, values), load_model=partial(load_recorded, job))
    print(summary.reason)
    sys.exit(summary.exit_code)


def run_ray_data(job: Job) -> None:
    """Run the job with Ray Data.

    Its tasks that read and write get half a core each of `extra_cpus`, and the model's actors one core each.
    """
    import ray
    from ray.data.checkpoint import CheckpointConfig

    ray.init(
        address="local", num_cpus=job.workers + job.extra_cpus, include_dashboard=False,
        object_store_memory=500 * 2**20, _temp_dir=os.environ["RAY_TMPDIR"],
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=f"{job.output}-checkpoint", delete_checkpoint_on_success=False
    )
    if job.max_errored_blocks is not None:
        context.max_errored_blocks = job.max_errored_blocks
    retries = {} if job.max_task_retries is None else {"max_task_retries": job.max_task_retries, "max_restarts": -1}
    files = [str(path) for path in photos_of(job)]
    images = ray.data.read_binary_files(
        files, include_paths=True, override_num_blocks=-(-len(files) // job.shard), num_cpus=0.5
    )
    rows = images.map_batches(
        Segment, fn_constructor_args=[job], batch_size=job.shard, batch_format="pyarrow", num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=job.workers, max_tasks_in_flight_per_actor=2), **retries,
    )  # fmt: skip
    rows.write_parquet(job.output, ray_remote_args={"num_cpus": 0.5}, compression="zstd")
    ray.shutdown()


def run_bare(job: Job, *, share: int | None = None) -> None:
    """Run the loop; with several workers, as many of these processes, each with every n-th image."""
    if job.workers > 1 and share is None:
        command = [sys.executable, "-c", ENTRY, "bare", json.dumps(asdict(job))]
        started = [subprocess.Popen([*command, str(index)]) for index in range(job.workers)]
        sys.exit(max(process.wait() for process in started))
    from pipeline.output.commit import encode_part
    from pipeline.output.rows import ImageRow, InstanceRow
    from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA

    segment = Segment(job)
    files = photos_of(job)[share or 0 :: job.workers]
    done = [segment.rows(str(path), path.read_bytes()) for path in files]
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    images, instances = [image for image, _ in done], [each for _, found in done for each in found]
    parts = {
        "images": encode_part(images, IMAGES_SCHEMA, ImageRow, run="bare"),
        "instances": encode_part(instances, INSTANCES_SCHEMA, InstanceRow, run="bare"),
    }
    for name, part in parts.items():
        (folder / f"{name}-{share or 0}.parquet").write_bytes(part)


def read_tables(engine: str, output: Path) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Yield the committed images of an output: their file's name, their row and the rows of their instances."""
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    if engine == "ray_data":
        for part in sorted(output.glob("*.parquet")):
            for row in pq.ParquetFile(part).read().to_pylist():
                yield Path(row["path"]).name, row, row.pop("found")
        return
    if engine == "htc":
        import htc_batch as htc

        results = htc.open(str(output))
        images, instances = results.images(), results.instances()
    else:
        images, instances = (
            ds.dataset([str(part) for part in output.glob(f"{name}-*.parquet")]).to_table()
            for name in ("images", "instances")
        )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in instances.to_pylist():
        found.setdefault(row["uri"], []).append(row)
    for row in images.to_pylist():
        yield Path(row["uri"]).name, row, found.get(row["uri"], [])


ENGINES = {"htc": run_htc, "ray_data": run_ray_data, "bare": run_bare}
ENTRY = "from benchmarks.engine_jobs import main; main()"


def main() -> None:
    """Run one engine: its name, the job as JSON, and the share of one process of several."""
    engine, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    if len(sys.argv) > 3:
        run_bare(job, share=int(sys.argv[3]))
    else:
        ENGINES[engine](job)
