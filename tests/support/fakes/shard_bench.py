"""A worker without Ray and without the actor class: shards of files go in, committed parts come out."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch

from htc_model.config import load_preset
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.shard import Shard
from pipeline.job_spec.job import JobSpec
from pipeline.job_spec.map_tables import MapTable
from pipeline.job_spec.tiles import TilesSection
from pipeline.messages import Assignment, ShardResult
from pipeline.models.checked import CheckedModel
from pipeline.output.commit import images_part, instances_part
from pipeline.output.parts import Part, part_uri
from pipeline.worker.commit_claim import CommitClaim
from pipeline.worker.model_time import ModelTime
from pipeline.worker.segmenter import Segmenter
from pipeline.worker.shard_pipeline import AHEAD_BYTES, WorkerResources
from pipeline.worker.shard_processor import ShardProcessor
from tests.support.fakes.models import FakeModel
from tests.support.fakes.painted import PaintedModel

Row = dict[str, object]


def spec_for(folder: Path, **images: int) -> JobSpec:
    return JobSpec.model_validate(
        {
            "input": {"uri": str(folder / "in")},
            "output": {"uri": str(folder / "out")},
            "model": {"preset": "htc_lite0_fpn", "weights": "untrained"},
            "images": images,
        }
    )


def refs_of(paths: Sequence[Path]) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(str(path)) for path in paths)


def resources_for(
    spec: JobSpec,
    model: "FakeModel | PaintedModel | CheckedModel",
    *,
    batch_size: int = 4,
    cpus: float = 1,
    ahead_bytes: int = AHEAD_BYTES,
    model_time: ModelTime | None = None,
    wants_semantic: bool = False,
    tiles: TilesSection | None = None,
) -> WorkerResources:
    """Return the resources that a worker of the spec has, on the CPU."""
    return WorkerResources(
        Segmenter(model, torch.device("cpu"), batch_size=batch_size, wants_semantic=wants_semantic),
        input_uri=spec.input.uri,
        storage=spec.storage,
        images=spec.images,
        image_timeout_s=spec.retry.image_timeout_s,
        cpus=cpus,
        ahead_bytes=ahead_bytes,
        model_time=model_time,
        tiles=tiles,
    )


class Bench:
    """A shard processor with a fake model, its resources and its output folder."""

    def __init__(
        self,
        folder: Path,
        model: "FakeModel | PaintedModel | CheckedModel | None" = None,
        *,
        batch_size: int = 4,
        cpus: float = 1,
        ahead_bytes: int = AHEAD_BYTES,
        model_time: ModelTime | None = None,
        maps: Sequence[MapTable] = (),
        tiles: TilesSection | None = None,
        **images: int,
    ) -> None:
        """`maps`: the tables of maps of the run. `images`: keys of the spec's section `images`."""
        self.model = model or FakeModel(load_preset("htc_lite0_fpn"))
        self.spec = spec_for(folder, **images)
        self.resources = resources_for(
            self.spec,
            self.model,
            batch_size=batch_size,
            cpus=cpus,
            ahead_bytes=ahead_bytes,
            model_time=model_time,
            tiles=tiles,
            wants_semantic=bool(maps),
        )
        self.processor = ShardProcessor(
            self.resources, output_uri=self.spec.output.uri, run="r", model_label="fake", map_tables=maps
        )
        self.done: list[int] = []

    def process(self, paths: Sequence[Path], *, index: int = 0, is_last_attempt: bool = False) -> ShardResult:
        assignment = Assignment(index, 1, is_last_attempt)
        report = self.processor.process(
            Shard(index, refs_of(paths)), assignment, claim=CommitClaim(), on_images=self.done.append
        )
        assert isinstance(report, ShardResult)
        return report

    def image_rows(self, index: int = 0) -> list[Row]:
        rows: list[Row] = pq.read_table(images_part(self.spec.output.uri, "r", index), partitioning=None).to_pylist()
        return rows

    def map_rows(self, table: MapTable, index: int = 0) -> list[Row]:
        uri = part_uri(self.spec.output.uri, table, "r", Part(index, index))
        rows: list[Row] = pq.read_table(uri, partitioning=None).to_pylist()
        return rows

    def instance_rows(self, index: int = 0) -> list[Row]:
        uri = instances_part(self.spec.output.uri, "r", index)
        rows: list[Row] = pq.read_table(uri, partitioning=None).to_pylist()
        return rows


def fake(**plan: object) -> FakeModel:
    return FakeModel(load_preset("htc_lite0_fpn"), **plan)  # type: ignore[arg-type]
