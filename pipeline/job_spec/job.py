"""The job spec: what one run reads, writes and computes.

A spec is a YAML file, or flags, or both; flags win. Every key except `input.uri` and `output.uri` is optional. Unknown
keys are refused, because a misspelt key that is silently ignored costs hours of computing with the wrong setting. This
module imports no torch, Ray, pyarrow or fsspec, as `htc --help` imports it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.job_spec.bands import Bands, ValueRange, plain_bands
from pipeline.job_spec.budget import BudgetSection
from pipeline.job_spec.ensemble import gather_ensemble
from pipeline.job_spec.model import ModelSection, check_preset
from pipeline.job_spec.notify import NotifySection
from pipeline.job_spec.parsing import read_spec
from pipeline.job_spec.tiles import Tiles, plain_tiles
from pipeline.settings import NAME_PATTERN, AutoCount, AutoCountOrRange, AutoShare, Section, digits_as_number
from pipeline.storage.config import StorageSection, Uri
from pipeline.storage.uris import absolute_uri

DEFAULT_PART_MIB = 256
# A file is merged in memory before it is written.
MAX_PART_MIB = 2048
# Of `JobSpec.identity`: which images there are, and in which shards. No image's results depend on these keys, and on
# every other one they may; a new key counts among the others until it is named here.
CHOICE_KEYS = frozenset(
    {
        "input.uri",
        "input.glob",
        "input.limit",
        # Of images' names. That of their bytes is another matter: row 7 of a file has one name in every column.
        "input.uri_column",
        "compute.shard_images",
        "select.mode",
        "select.retry",
        "select.where",
    }
)
AutoShardImages = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)], BeforeValidator(digits_as_number)
]


class InputSection(Section):
    """Where the images are.

    image_column: the column of Parquet files with image bytes; null to choose it by the columns' types, names and
        first rows.
    uri_column: the column of a listing or of Parquet files with the names of images; a key where entries are JSON. A
        number counts the columns of a text listing without a heading, from 1.
    bands: those of an image that are red, green and blue, counted from 1, such as [4, 3, 2]; null for the first three.
    value_range: the values that are black and white, for samples of TIFFs with more than 8 bits, signed or
        floating-point ones; null for the upper 8 bits.
    """

    uri: Uri = Field(min_length=1, description="a path or URI")
    glob: str | None = Field(
        default=None, min_length=1, description='a pattern relative to input.uri, such as "**/*.jpg"'
    )
    limit: int | None = Field(default=None, ge=1, description="a whole number of images, at least 1")
    image_column: str | None = Field(default=None, min_length=1, description="the name of a Parquet column, or null")
    uri_column: str | None = Field(
        default=None, min_length=1, description="the heading (or number) of the column that names the images, or null"
    )
    bands: Bands | None = Field(default=None, description="three whole numbers, at least 1, or null")
    value_range: ValueRange | None = Field(default=None, description="two numbers, the smaller one first, or null")

    @model_validator(mode="after")
    def _refuse_two_columns(self) -> Self:
        if self.image_column is not None and self.uri_column is not None:
            raise ValueError("image_column and uri_column exclude each other: images are bytes or names of files")
        return self


class OutputSection(Section):
    """Where the tables go.

    target_part_mib: most MiB of a file that `htc compact` writes; 256 is a few thousand requests for a billion images,
        and a file is merged in memory.
    """

    uri: Uri = Field(min_length=1, description="a path or URI")
    target_part_mib: int = Field(
        default=DEFAULT_PART_MIB, ge=1, le=MAX_PART_MIB, description="a whole number of MiB from 1 to 2048"
    )


class ComputeSection(Section):
    """How the work is distributed; only shard_images changes what is computed.

    workers: how many there are at most. "auto" is as many as there is room for, also on nodes that join later; a number
        is asked for in any case, so that an autoscaler brings nodes; "MIN:MAX" asks for MAX, and keeps MIN until the
        last shard is done.
    shard_images: "auto" gives every worker several shards of at most 256 images; see `pipeline.planning.shard_size`.
    worker_max_shards, worker_max_memory_gib: a worker is replaced after this many shards, or when its process holds
        this much resident memory after a shard; null for no limit.
    mask_processes: that make the masks' text beside each worker with a GPU, for large images with many instances; 0
        makes it in the worker, which keeps up with 300 images/s of 640 x 480 with 100 instances.
    """

    workers: AutoCountOrRange = Field(
        default="auto",
        description='"auto", a whole number, at least 1, or a range from a smaller to a larger one, such as "2:8"',
    )
    gpus_per_worker: AutoShare = Field(
        default="auto", description='"auto" or a number, 0 or more (fractions share a GPU)'
    )
    cpus_per_worker: AutoShare = Field(default="auto", description='"auto" or a number, 0 or more')
    batch_size: AutoCount = Field(default="auto", description='"auto" or a whole number, at least 1')
    shard_images: AutoShardImages = Field(
        default="auto", description='"auto" or a whole number of images from 1 to 100000'
    )
    worker_max_shards: int | None = Field(default=None, ge=1, description="a whole number, at least 1, or null")
    worker_max_memory_gib: float | None = Field(default=None, gt=0, description="GiB, more than 0, or null")
    mask_processes: int = Field(default=0, ge=0, description="a whole number, 0 or more")

    @property
    def fewest_workers(self) -> int:
        """The workers that are kept while there are shards."""
        return int(self.workers.split(":")[0]) if isinstance(self.workers, str) and self.workers != "auto" else 1

    @property
    def most_workers(self) -> int | None:
        """The largest number of workers; None for as many as there is room for."""
        if isinstance(self.workers, int):
            return self.workers
        return None if self.workers == "auto" else int(self.workers.split(":")[1])


class RetrySection(Section):
    """How often a shard is attempted, how many images may fail, and the time limits.

    max_error_rate: the share of the images that may fail; a run with more failures is over its error budget.
    max_errors: how many may fail in any case, so that one junk file among four does not fail the run; never more than
        half of the images, and none when no image is ok. The default is 0 where max_error_rate is 0.
    image_timeout_s: for decoding one image, inferring it or encoding its masks; much longer than a valid image takes
        on any machine, because an image that times out is not attempted again.
    start_timeout_s: for a worker's process to load the model, including the download of its weights; half a gigabyte
        at 0.3 MB/s. Also for a node to come on which a first worker has room; not for further ones.
    """

    max_attempts: int = Field(default=4, ge=1, le=100, description="a whole number from 1 to 100")
    max_error_rate: float = Field(default=0.05, ge=0, le=1, description="a share of the images, from 0 to 1")
    max_errors: int = Field(default=5, ge=0, description="a whole number of images, 0 or more")
    image_timeout_s: float | None = Field(default=300.0, gt=0, description="seconds, more than 0, or null for no limit")
    start_timeout_s: float | None = Field(
        default=1800.0, gt=0, description="seconds, more than 0, or null for no limit"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_floor_where_none_may_fail(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("max_error_rate") == 0:
            return {"max_errors": 0, **values}
        return values


class ImagesSection(Section):
    """How images are decoded, and their size limits; larger ones get the status `too_large`.

    max_pixels: the default is twice Pillow's decompression-bomb warning level (`Image.MAX_IMAGE_PIXELS` = 89478485),
        the size at which Pillow itself raises.
    max_bytes: encoded size; 512 MiB holds any camera's TIFF, and two of them fill what a worker reads at once.
    jpeg_decoder: "exact" gives Pillow's pixels; "nvjpeg" decodes on the GPU, and differs by a few grey levels.
    """

    max_pixels: int = Field(default=178_956_970, ge=1, description="a whole number of pixels, at least 1")
    max_bytes: int = Field(default=512 * 1024 * 1024, ge=1, description="a whole number of bytes, at least 1")
    jpeg_decoder: Literal["exact", "nvjpeg"] = Field(default="exact", description='"exact" or "nvjpeg"')


class SelectSection(Section):
    """Which of the listed images a run processes; see docs/nightly.md.

    mode: "full" processes all of them; "incremental" those that are new or changed, or have another model's results.
    retry: for unchanged images whose newest row of the same model is not ok. "transient" processes those again that
        are `failed` or `missing`; "none" processes none of them; "failed" processes only images whose newest row is
        not ok, and nothing else.
    where: SQL that selects `image_id` or `uri`; limits the unchanged images with only another model's results that
        are processed again to the selected ones.
    max_deleted_share: a listing that lacks a larger share of the known images is refused.
    """

    mode: Literal["full", "incremental"] = Field(default="full", description='"full" or "incremental"')
    retry: Literal["none", "transient", "failed"] = Field(
        default="transient", description='"none", "transient" or "failed"'
    )
    where: str | None = Field(default=None, min_length=1, description="an SQL statement, or null")
    max_deleted_share: float = Field(default=0.5, ge=0, le=1, description="a share of the known images, from 0 to 1")

    @model_validator(mode="after")
    def _refuse_choice_of_everything(self) -> Self:
        if self.mode == "full" and (self.where is not None or self.retry == "failed"):
            key = "`where`" if self.where is not None else "`retry: failed`"
            raise ValueError(f"{key} needs `mode: incremental` (--incremental), as a full run does every image")
        return self


class JobSpec(Section):
    """The full description of one run."""

    name: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="letters, digits, dots, dashes and underscores, starting with a letter or digit",
    )
    input: InputSection = Field(
        description="a section with the keys uri, glob, limit, image_column, uri_column, bands, value_range"
    )
    output: OutputSection = Field(description="a section with the keys uri, target_part_mib")
    storage: StorageSection = StorageSection()
    model: ModelSection = ModelSection()
    compute: ComputeSection = ComputeSection()
    retry: RetrySection = RetrySection()
    images: ImagesSection = ImagesSection()
    tiles: Tiles = Field(
        default=None, description='"none", "auto", SIDE, "SIDE:OVERLAP", or a section with side, overlap and above'
    )
    select: SelectSection = SelectSection()
    notify: NotifySection = NotifySection()
    telemetry: Literal["auto", "otel", "off"] = Field(
        default="auto", description="auto (by OpenTelemetry's environment variables), otel or off"
    )
    budget: BudgetSection = BudgetSection()

    @model_validator(mode="after")
    def _refuse_maps_of_tiles(self) -> Self:
        if self.tiles is not None and self.model.map_tables:
            raise ValueError(
                f"tiles and model.{self.model.map_tables[0]} exclude each other, as the maps of tiles are not joined; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _gather_ensemble(cls, values: Any) -> Any:
        return gather_ensemble(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved spec as plain JSON-able values, for run.json."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, object]:
        """Return, by dotted key, the values that must be the same when a run is resumed.

        `model.weights` is absent: the fingerprint holds the sha256 of the file instead of its path.
        """
        return {
            "input.uri": self.input.uri,
            "input.glob": self.input.glob,
            "input.limit": self.input.limit,
            **self.model.identity(),
            "compute.shard_images": self.compute.shard_images,
            "images.max_pixels": self.images.max_pixels,
            "images.max_bytes": self.images.max_bytes,
            **self._columns(),
            # Absent where they are not given, as in runs of releases without these keys.
            **plain_bands(self.input.bands, self.input.value_range),
            **self._decoding(),
            **self._tiling(),
            **self._selecting(),
        }

    def _columns(self) -> dict[str, object]:
        # Absent where none is chosen, as in runs of releases without these keys.
        chosen = {"input.image_column": self.input.image_column, "input.uri_column": self.input.uri_column}
        return {key: column for key, column in chosen.items() if column is not None}

    def _decoding(self) -> dict[str, object]:
        # Absent where it is the default, as in runs of releases without this key.
        decoder = self.images.jpeg_decoder
        return {} if decoder == "exact" else {"images.jpeg_decoder": decoder}

    def _tiling(self) -> dict[str, object]:
        # Absent where images are not cut, as in runs of releases without this key.
        tiles = plain_tiles(self.tiles)
        return {} if tiles is None else {"tiles": tiles}

    def _selecting(self) -> dict[str, object]:
        # Absent from full runs, as in runs of releases without these keys.
        select = self.select
        if select.mode == "full":
            return {}
        return {"select.mode": select.mode, "select.retry": select.retry, "select.where": select.where}

    def absolute(self) -> Self:
        """Return the spec with every local path made absolute, relative to the current folder."""
        return self.model_copy(
            update={
                "input": self.input.model_copy(update={"uri": absolute_uri(self.input.uri)}),
                "output": self.output.model_copy(update={"uri": absolute_uri(self.output.uri)}),
                "model": self.model.absolute(),
            }
        )


def load_spec(path: str | Path | None, overrides: Mapping[str, object] | None = None) -> JobSpec:
    """Read a YAML spec and override its values with the flags.

    Args:
        path: a YAML file, local or remote; None when flags give everything.
        overrides: values by dotted key, `{"model.preset": "htc_r101_fpn"}`; None stands for a flag not given.

    Returns:
        the checked spec, with absolute local paths.

    Raises:
        SpecError: one sentence per problem, all problems at once.
    """
    spec = read_spec(JobSpec, path, overrides, replaced=_REPLACED, prepare=gather_ensemble)
    if spec.model.factory is None:
        for member in spec.model.members:
            check_preset(member)
    return spec.absolute()


# A flag that names another model leaves the file's factory and its options behind.
_REPLACED = {"model.preset": ("model.factory", "model.options")}
