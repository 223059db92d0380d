"""The tables of maps that a worker writes, and the driver where no worker does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from htc_model.config import ResizeConfig
from htc_model.masks.rle import decode_rle
from htc_model.structures import ImageBatch, RawDetections
from pipeline.driver.commit import ShardCommitter
from pipeline.driver.run_job import worker_settings
from pipeline.inputs.shard import Shard
from pipeline.job_spec.map_tables import MAP_TABLES, MapTable, PanopticSection
from pipeline.messages import Assignment, PartialResult, ShardOutcome, WorkerFailure
from pipeline.output.commit import images_part
from pipeline.storage.storage import Storage
from pipeline.worker.batch_encoding import BatchEncoder
from pipeline.worker.commit_claim import CommitClaim
from pipeline.worker.fast_path import choose_fast_model
from pipeline.worker.worker import Worker
from tests.support.builders.finished_runs import HookedStorage, PowerCutError
from tests.support.builders.networks import lite_config, untrained_model
from tests.support.fakes.models import FakeModel, LoadFake, write_image
from tests.support.fakes.shard_bench import Bench, Row, fake, refs_of, spec_for


def masks_of(rows: list[Row], uri: Path) -> list[NDArray[np.bool_]]:
    return [decode_rle(row["mask"]) for row in rows if row["uri"] == str(uri)]  # type: ignore[arg-type]


def two_photos(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"{number}.png", (20 + number, 30)) for number in range(2)]


def test_a_semantic_map_covers_its_image_without_overlap(tmp_path: Path) -> None:
    paths = two_photos(tmp_path)
    bench = Bench(tmp_path, maps=["semantic"])
    bench.process(paths)
    rows = bench.map_rows("semantic")
    assert [(row["uri"], row["class_id"], row["class"]) for row in rows] == [
        (str(path), number, name) for path in paths for number, name in ((1, "person"), (157, "sky-other"))
    ]
    for height, path in enumerate(paths, 20):
        person, sky = masks_of(rows, path)
        assert (person ^ sky).all()
        # The border between the two cells is in the middle, where both are equal and the first is taken.
        assert person[:, :15].all()
        assert sky[:, 15:].all()
        assert [row["area"] for row in rows if row["uri"] == str(path)] == [15 * height, 15 * height]
    assert {(row["model"], row["run_name"]) for row in rows} == {("fake", "r")}
    assert not (tmp_path / "out" / "panoptic").exists()


def test_panoptic_segments_name_their_instances_and_never_overlap(tmp_path: Path) -> None:
    """The fake's instance covers its whole image; of a smaller one the sky keeps its pixels."""
    paths = two_photos(tmp_path)

    class Smaller(FakeModel):
        def infer(self, batch: ImageBatch) -> list[RawDetections]:
            found = super().infer(batch)
            return [replace(raw, boxes_xyxy=torch.tensor([[0.0, 0.0, 20.0, 10.0]])) for raw in found]

    bench = Bench(tmp_path, Smaller(fake().config), maps=["panoptic"])
    large = write_image(tmp_path / "large.png", (200, 300))
    bench.process([*paths, large])
    rows, instances = bench.map_rows("panoptic"), bench.instance_rows()
    of_large = [row for row in rows if row["uri"] == str(large)]
    assert [(row["segment"], row["is_thing"], row["instance"]) for row in of_large] == [(0, True, 0), (1, False, None)]
    thing, sky = of_large
    assert (sky["category_id"], sky["category"], sky["score"]) == (157, "sky-other", None)
    (own,) = [row for row in instances if row["uri"] == str(large)]
    for column in ("image_id", "category_id", "category", "score", "area"):
        assert thing[column] == own[column]
    for row in of_large:
        mask = decode_rle(row["mask"])  # type: ignore[arg-type]
        ys, xs = np.nonzero(mask)
        assert row["area"] == mask.sum()
        assert row["bbox"] == {
            "x": xs.min(),
            "y": ys.min(),
            "width": xs.max() - xs.min() + 1,
            "height": ys.max() - ys.min() + 1,
        }
    assert (np.sum(masks_of(rows, large), axis=0) <= 1).all()
    # Stuff smaller than 4,096 pixels is left out.
    assert [row["is_thing"] for row in rows if row["uri"] != str(large)] == [True, True]
    assert not (tmp_path / "out" / "semantic").exists()


def test_what_becomes_a_segment_is_settled_in_the_spec(tmp_path: Path) -> None:
    """The fake's instance scores 0.9, and the sky has 300 pixels."""
    paths = two_photos(tmp_path)
    bench = Bench(tmp_path, maps=["panoptic"])
    bench.resources.panoptic = PanopticSection(min_score=0.95, min_stuff_area=300)
    bench.process(paths)
    assert [(row["uri"], row["category"], row["area"]) for row in bench.map_rows("panoptic")] == [
        (str(paths[0]), "sky-other", 300),
        (str(paths[1]), "sky-other", 315),
    ]


def test_images_that_fail_have_no_rows_and_their_shard_has_every_part(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image at all")
    paths = [*two_photos(tmp_path), tmp_path / "text.jpg"]
    bench = Bench(tmp_path, fake(deeds={(21, 30): "nan_map"}), maps=MAP_TABLES)
    bench.process(paths)
    assert [row["status"] for row in bench.image_rows()] == ["ok", "failed", "unreadable"]
    assert "the semantic branch" in str(bench.image_rows()[1]["error"])
    for table in MAP_TABLES:
        assert {row["uri"] for row in bench.map_rows(table)} == {str(paths[0])}
    bench.process(paths[1:], index=1)
    for table in MAP_TABLES:
        assert bench.map_rows(table, 1) == []


def test_a_run_without_maps_has_no_such_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.process(two_photos(tmp_path))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images", "instances"]


def test_a_model_that_gives_no_map_is_a_bug_of_each_image(tmp_path: Path) -> None:
    class WithoutMap(FakeModel):
        def infer(self, batch: ImageBatch) -> list[RawDetections]:
            return super().infer(replace(batch, wants_semantic=False))

    bench = Bench(tmp_path, WithoutMap(fake().config), maps=["semantic"])
    bench.process(two_photos(tmp_path))
    assert {str(row["status"]) for row in bench.image_rows()} == {"failed"}
    assert "asked for a semantic map" in str(bench.image_rows()[0]["error"])


def piece(bench: Bench, shard: Shard, *positions: int) -> PartialResult:
    assignment = Assignment(shard.index, 1, False, positions)
    found = bench.processor.process(shard, assignment, claim=CommitClaim(), on_images=lambda _: None)
    assert isinstance(found, PartialResult)
    return found


@pytest.mark.parametrize("tables", [MAP_TABLES, ("semantic",)])
def test_the_driver_commits_pieces_in_the_order_of_images(tmp_path: Path, tables: tuple[MapTable, ...]) -> None:
    """As after a bisection: the pieces of the workers, and an image that killed them."""
    paths = [write_image(tmp_path / f"{number}.png", (20 + number, 30)) for number in range(4)]
    bench, shard = Bench(tmp_path, maps=tables), Shard(3, refs_of(paths))
    settled = ShardOutcome(3, 5, [piece(bench, shard, 3), piece(bench, shard, 0, 1)], {2: "it kills workers"})
    committer = ShardCommitter(Storage(), bench.spec.output.uri, "r", model="fake", map_tables=tables)
    committer.commit(shard, settled)
    assert [row["status"] for row in bench.image_rows(3)] == ["ok", "ok", "failed", "ok"]
    for table in tables:
        uris = [row["uri"] for row in bench.map_rows(table, 3)]
        each = 2 if table == "semantic" else 1
        assert uris == [str(paths[at]) for at in (0, 1, 3) for _ in range(each)]


def test_a_shard_that_is_given_up_whole_has_empty_parts(tmp_path: Path) -> None:
    bench, shard = Bench(tmp_path), Shard(0, refs_of(two_photos(tmp_path)))
    committer = ShardCommitter(Storage(), bench.spec.output.uri, "r", model="fake", map_tables=MAP_TABLES)
    committer.commit(shard, ShardOutcome(0, 4, [], {0: "it hangs", 1: "it hangs"}))
    assert [bench.map_rows(table) for table in MAP_TABLES] == [[], []]


def test_maps_are_written_before_the_part_that_commits(tmp_path: Path) -> None:
    written: list[str] = []

    class Noting(Storage):
        def write(self, uri: str, payload: bytes) -> None:
            written.append(Path(uri).parts[-3])
            super().write(uri, payload)

    bench = Bench(tmp_path, maps=MAP_TABLES)
    bench.resources.storage = Noting()
    bench.process(two_photos(tmp_path))
    assert written == ["semantic", "panoptic", "instances", "images"]
    assert Path(images_part(bench.spec.output.uri, "r", 0)).exists()


@pytest.mark.parametrize("files", range(4))
def test_a_worker_that_dies_between_two_files_leaves_its_shard_to_the_next_attempt(tmp_path: Path, files: int) -> None:
    paths = two_photos(tmp_path)
    sound, bench = Bench(tmp_path / "sound", maps=MAP_TABLES), Bench(tmp_path / "cut", maps=MAP_TABLES)
    sound.process(paths)
    bench.resources.storage = HookedStorage(dies_before=files)
    with pytest.raises(PowerCutError):
        bench.process(paths)
    assert not Path(images_part(bench.spec.output.uri, "r", 0)).exists()
    bench.resources.storage = Storage()
    bench.process(paths)
    for table in MAP_TABLES:
        assert bench.map_rows(table) == sound.map_rows(table)


def test_the_encoder_of_batches_encodes_maps_as_the_worker_does(tmp_path: Path) -> None:
    paths = two_photos(tmp_path)
    plain, batched = Bench(tmp_path / "a", maps=MAP_TABLES), Bench(tmp_path / "b", maps=MAP_TABLES)
    encoder = BatchEncoder(torch.device("cpu"))
    batched.resources.segmenter._encoder = encoder
    for bench in (plain, batched):
        bench.process(paths)
    encoder.close()
    for table in MAP_TABLES:
        assert plain.map_rows(table) == batched.map_rows(table)


def test_a_worker_refuses_a_model_without_the_branch(tmp_path: Path) -> None:
    spec = spec_for(tmp_path)
    section = spec.model.model_copy(update={"semantic": True, "preset": "mask_rcnn_r50_fpn"})
    spec = spec.model_copy(update={"model": section})
    failure = Worker(worker_settings(spec, "r", LoadFake())).start()
    assert isinstance(failure, WorkerFailure)
    assert (failure.is_permanent, failure.exit_code, failure.traceback) == (True, 2, None)
    assert "model.semantic: mask_rcnn_r50_fpn has no semantic branch" in failure.reason
    assert "htc_r50_fpn" in failure.reason


def test_the_fast_model_is_compared_by_its_maps_too() -> None:
    small = lite_config(semantic_classes=6, resize=ResizeConfig(96, 64), rpn_proposals=20, max_detections=5)
    model = untrained_model(small)

    class WithoutMaps:
        config = model.config

        def infer(self, batch: ImageBatch) -> list[RawDetections]:
            return model.infer(replace(batch, wants_semantic=False))

    class OtherMaps(WithoutMaps):
        def infer(self, batch: ImageBatch) -> list[RawDetections]:
            found = model.infer(batch)
            return [
                replace(raw, semantic=[replace(seen, logits=-seen.logits) for seen in raw.semantic or ()])
                for raw in found
            ]

    def note(fast: object, **options: bool) -> str:
        return choose_fast_model(model, torch.device("cpu"), "fp32", build=lambda _: fast, **options).note  # type: ignore[arg-type,return-value]

    assert note(model, wants_semantic=True) == note(WithoutMaps()) == "on"
    assert "semantic maps are missing" in note(WithoutMaps(), wants_semantic=True)
    assert "of the semantic map have another class" in note(OtherMaps(), wants_semantic=True)
