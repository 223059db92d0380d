"""ImageDataset: the images of a run with their instances, for PyTorch's data loaders."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from pipeline.errors import InputError, NotFoundError
from pipeline.inputs.decode import decode_image
from pipeline.inputs.formats.bands import rule_of
from pipeline.inputs.read import fetch_image
from pipeline.output.layout import run_folder
from pipeline.planning.manifest import Manifest, ManifestReader
from pipeline.storage.uris import display_uri, join

if TYPE_CHECKING:
    from htc_batch.results import Results
    from pipeline.inputs.image_ref import ImageRef

# Shards of the manifest whose addresses are kept; readers that go by the order of the images need one at a time.
KEPT_SHARDS = 8
_COLUMNS = ["image_id", "uri", "etag", "width", "height", "shard"]

Sample = tuple[torch.Tensor, dict[str, Any]]


class ImageDataset(Dataset[Sample]):
    """The images that a run has a result of, each with its instances, in the order of run and shard.

    `dataset[0]` is a pair as torchvision's detection models take it: pixels, [3, H, W] uint8 RGB, upright; and a dict
    of `boxes` [N, 4] float32 x1, y1, x2, y2 in pixels, `labels` [N] int64 (ids of categories), `scores` [N] float32,
    `masks` [N, H, W] bool, `area` [N] int64, `iscrowd` [N] int64 zeros, `image_id` (an int), `uri` and `run` (texts).
    N is 0 where nothing was found. Instances of a model without masks have no `masks` and no `area`.

    Images are read from where the run read them. It pickles, and may be used by several worker processes.

    Attributes:
        categories: names of the chosen categories in the data set's run, by id.
    """

    def __init__(
        self,
        results: "Results",
        run: str | None = "latest",
        *,
        category: str | int | Sequence[str | int] | None = None,
        min_score: float | None = None,
        is_sparse: bool = False,
        transform: Callable[[torch.Tensor, dict[str, Any]], Any] | None = None,
    ) -> None:
        """Choose images and instances.

        Args:
            run: a run's name, "latest" or "current".
            category: names or ids of categories; other instances are left out.
            min_score: instances that score less are left out.
            is_sparse: leave out images without a chosen instance, too.
            transform: takes pixels and the dict, and returns what the data set gives.

        Raises:
            InputError: there is no run of this name, or no image to give.
        """
        self._results = results
        self._run = run
        self._chosen: dict[str, Any] = {"category": category, "min_score": min_score}
        self._transform = transform
        images = results.images(run, _COLUMNS, status="ok")
        sql, values = results.instances_sql(run, ["image_id", "category_id", "category"], **self._chosen)
        pairs = results.ask(f"SELECT DISTINCT category_id, category FROM ({sql}) ORDER BY ALL", values)  # noqa: S608
        self.categories = {row["category_id"]: row["category"] for row in pairs.to_pylist()}
        if is_sparse:
            # The images' places in the order of run and shard, of those that have an instance.
            wanted = results.ask(f"SELECT DISTINCT image_id, run FROM ({sql})", values)  # noqa: S608
            keys = images.select(["image_id", "run"]).append_column("at", pa.array(range(len(images))))
            places = keys.join(wanted, ["image_id", "run"], join_type="left semi").column("at")
            images = images.take(places.combine_chunks().sort())
        if not len(images):
            raise InputError(f"{results.output_uri} has no such image with the status ok; images() shows the errors.")
        self._images = images.combine_chunks()
        self._manifests: dict[str, ManifestReader] = {}
        self._shards: OrderedDict[tuple[str, int], dict[str, ImageRef]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        """Read an image and its instances.

        Raises:
            NotFoundError: the image is gone.
            InputError: it has changed since the run, so the instances are another picture's; or a mask is damaged.
            IndexError: there are not as many images.
        """
        row = self._images.slice(range(len(self))[index], 1).to_pylist()[0]
        pixels = torch.from_numpy(self._read(row)).permute(2, 0, 1).contiguous()
        target = self._target(row)
        return (pixels, target) if self._transform is None else self._transform(pixels, target)

    def __repr__(self) -> str:
        """Return how many images of which output it has."""
        return f"<ImageDataset: {len(self):,} images of {self._results.output_uri}, run {self._run}>"

    def _read(self, row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        ref = self._refs(str(row["run"]), int(row["shard"])).get(row["uri"])
        if ref is None:
            raise NotFoundError(f"{row['uri']} is not in the manifest of run {row['run']}.")
        payload, version = fetch_image(ref, self._results.storage)
        if row["etag"] is not None and version.etag is not None and version.etag != row["etag"]:
            raise InputError(f"{row['uri']} has changed since run {row['run']}; its masks are of another picture.")
        # The run has decoded it before, so its size is safe.
        record = next(each for each in self._results.records if each.run == row["run"])
        rule = rule_of(record.spec.get("input", {}))
        pixels = decode_image(payload, max_pixels=max(1, row["width"] * row["height"]), rule=rule)
        if pixels.shape[:2] != (row["height"], row["width"]):
            raise InputError(f"{row['uri']} has another size than in run {row['run']}.")
        return pixels

    def _refs(self, run: str, shard: int) -> "dict[str, ImageRef]":
        """Return the images of a shard in the run's manifest, by uri."""
        key = (run, shard)
        if key not in self._shards:
            if run not in self._manifests:
                record = next(each for each in self._results.records if each.run == run)
                folder = join(run_folder(self._results.output_uri, run), "manifest")
                manifest = Manifest.from_dict(record.manifest)
                self._manifests[run] = ManifestReader(self._results.storage, folder, manifest)
            self._shards[key] = {display_uri(ref.uri): ref for ref in self._manifests[run].read_shard(shard).images}
            if len(self._shards) > KEPT_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(key)
        return self._shards[key]

    def _target(self, row: dict[str, Any]) -> dict[str, Any]:
        masks = self._results.masks_of(row, **self._chosen)
        corners = masks.boxes_xywh.copy()
        corners[:, 2:] += corners[:, :2]
        target: dict[str, Any] = {
            "boxes": torch.from_numpy(corners),
            "labels": torch.tensor(masks.rows.column("category_id").to_pylist(), dtype=torch.int64),
            "scores": torch.from_numpy(masks.scores.copy()),
            "iscrowd": torch.zeros(len(masks), dtype=torch.int64),
            "image_id": row["image_id"],
            "uri": row["uri"],
            "run": row["run"],
        }
        areas = masks.rows.column("area")
        if not areas.null_count:
            target["masks"] = torch.from_numpy(masks.stack())
            target["area"] = torch.tensor(areas.to_pylist(), dtype=torch.int64)
        return target
