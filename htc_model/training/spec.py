"""The training spec: all settings of a training run, validated before it starts."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from htc_model.config import Neck, Norm
from htc_model.training.augment import Augmentation
from htc_model.training.learning_rate import ScheduleKind
from htc_model.weights.model_zoo import BUNDLED_PRESET

Precision = Literal["auto", "fp32", "bf16", "fp16"]
COCO_PRESET = "htc_r50_fpn"
"""The preset of `initial: coco` where none is named, as of `--weights coco`."""
INITIAL_WORDS = ("imagenet", "demo", "coco", "none")
LoggerName = Literal["tensorboard", "mlflow", "wandb"]
# As these were written before `htc run` had a precision of its own.
_OLDER_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """One COCO file and the folder of its images, each a path or a URI.

    stuff: a folder of semantic maps, one PNG per image with the image's name and a label per pixel (255: ignored), like
        COCO's stuffthingmaps. Without it, the semantic branch's maps are made from the instances' masks.
    """

    annotations: str
    images: str
    stuff: str | None = None


class AugmentationSection(_Section):
    """See `Augmentation`."""

    flip: float = Field(default=0.5, ge=0, le=1)
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = Field(default=0.0, ge=0, le=1)
    copy_paste: float = Field(default=0.0, ge=0, le=1)
    crop: float = Field(default=0.0, ge=0, le=1)
    mosaic: float = Field(default=0.0, ge=0, le=1)
    short_sides: tuple[int, int] | None = None
    long_side: int | None = Field(default=None, ge=32)

    @model_validator(mode="after")
    def _check_scale(self) -> "AugmentationSection":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be [low, high] with 0 < low <= high, not {list(self.scale)}")
        if self.short_sides is not None and not 32 <= self.short_sides[0] <= self.short_sides[1]:
            raise ValueError(
                f"short_sides must be [low, high] pixels with 32 <= low <= high, not {list(self.short_sides)}"
            )
        if self.long_side is not None and self.short_sides is None:
            raise ValueError("augmentation.long_side belongs to short_sides; for one size set model.long_side")
        return self

    def build(self) -> Augmentation:
        """Convert to the settings that `augment_image` takes."""
        sides = self.short_sides, self.long_side
        return Augmentation(self.flip, self.scale, self.colour, self.copy_paste, self.crop, self.mosaic, *sides)


class ModelSection(_Section):
    """The network.

    preset: a name of `PRESETS`. classes: names to train on, all of the data's by default.
    initial: "imagenet" (EfficientNet-Lite0's package), "demo" (the bundled model), "coco" (the preset's published
        checkpoint), "none", or a weights file. frozen_stages: see
        `freeze_backbone`. batch_norm: "frozen" keeps the stored statistics, "trained" updates them (with large
        batches only), "synchronised" updates them by the batches of all workers together. norm: "group" replaces the
        backbone's batch norms, for training from scratch with small batches.
        short_side, long_side: pixels, the preset's own by default. interleaved, mask_info_flow, semantic: HTC's
        switches, the preset's own by default. stages: how many of the preset's box and mask heads; 1 without the
        switches is Mask R-CNN. neck, roi_head: see `ModelConfig`, the preset's own by default; one stage without the
        switches, with pafpn and panet, is PANet. semantic_classes: how many labels the data's semantic maps have, the
        preset's own (COCO's 183) by default; without maps there is one per class and one for the rest. semantic_names:
        of these labels, in their order; those of COCO-Stuff are known.
    """

    preset: str = BUNDLED_PRESET
    classes: tuple[str, ...] | None = None
    initial: str = "imagenet"
    frozen_stages: int = Field(default=-1, ge=-1, le=4)
    batch_norm: Literal["frozen", "trained", "synchronised"] = "frozen"
    norm: Norm = "batch"
    short_side: int | None = Field(default=None, ge=32)
    long_side: int | None = Field(default=None, ge=32)
    interleaved: bool | None = None
    mask_info_flow: bool | None = None
    semantic: bool | None = None
    stages: int | None = Field(default=None, ge=1)
    neck: Neck | None = None
    roi_head: Literal["cascade", "panet"] | None = None
    semantic_classes: int | None = Field(default=None, ge=2, le=255)
    semantic_names: tuple[str, ...] | None = Field(default=None, min_length=2, max_length=255)

    @model_validator(mode="before")
    @classmethod
    def _settle_preset(cls, values: Any) -> Any:
        # As `htc run --weights coco`: the bundled model's preset has no published weights.
        if isinstance(values, dict) and values.get("initial") == "coco":
            return {"preset": COCO_PRESET, **values}
        return values

    @model_validator(mode="after")
    def _count_semantic_names(self) -> "ModelSection":
        names = self.semantic_names
        if names is not None and self.semantic_classes not in (None, len(names)):
            raise ValueError(f"semantic_classes is {self.semantic_classes}, and semantic_names has {len(names)} names")
        if names is not None and len(set(names)) < len(names):
            raise ValueError("semantic_names has a name twice")
        return self

    @model_validator(mode="after")
    def _check_demo(self) -> "ModelSection":
        if self.initial == "demo" and self.preset != BUNDLED_PRESET:
            raise ValueError(
                f"initial demo is weights of {BUNDLED_PRESET}, not of {self.preset}; leave preset (--model) out, or "
                "take initial coco"
            )
        return self


class OptimiserSection(_Section):
    """Optimiser, learning rate and weight average.

    learning_rate: the base rate, for the batches of all processes together. trunk_factor: the backbone's learning rate
        is this fraction of it. clip_norm: gradients are clipped to this L2 norm; None: never. ema_decay: of the
        averaged weights, which are the result. warmup_steps: over which the learning rate rises at the beginning;
        warmup_epochs counts them in passes over the images instead, and may be a fraction.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    trunk_factor: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: ScheduleKind = "cosine"
    warmup_steps: int = Field(default=200, ge=0)
    warmup_epochs: float | None = Field(default=None, ge=0)
    clip_norm: float | None = Field(default=10.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)


class SamplingSection(_Section):
    """How many boxes are used per image; None keeps the published numbers (see `train_config_for`)."""

    rois: int | None = Field(default=None, ge=4)
    proposals: int | None = Field(default=None, ge=1)


class TrainingSpec(_Section):
    """One training run.

    output: a local folder. batch_size: images that a worker's network takes at once. accumulate: batches per step, for
        steps of more images than the memory has room for. epochs: passes over the training images; may grow when the
        run is resumed.
    val_share: the share of the training images that is held out for scoring, each class by its share.
    patience: training ends after so many evaluations without a better score; None: never.
    class_balance: images are repeated in each epoch for the sake of classes on fewer than this share of them (see
        `repeat_factors`); 0 takes each once.
    precision: of the network's arithmetic: "fp32"; "bf16" or "fp16", faster on a GPU (mixed precision); "auto" is bf16
        or fp16 on a GPU and fp32 on a CPU.
    evaluate_epochs, checkpoint_steps: intervals; 0 evaluates only at the end. loaders: processes per worker that
        prepare batches. pictures: images of the first evaluation set whose detections are drawn at each evaluation.
    loggers: where the metrics go beside `metrics.jsonl`.
    workers: processes that train together; more than one are started by Ray, and all their machines must see the output
        folder. gpus_per_worker: "auto" is one each where there are GPUs. cpus_per_worker: cores reserved for each, one
        by default.
    """

    train: tuple[DataSection, ...] = Field(min_length=1)
    evaluate: tuple[DataSection, ...] = ()
    output: str
    model: ModelSection = ModelSection()
    optimiser: OptimiserSection = OptimiserSection()
    sampling: SamplingSection = SamplingSection()
    augmentation: AugmentationSection = AugmentationSection()
    seed: int = 0
    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=4, ge=1)
    accumulate: int = Field(default=1, ge=1)
    val_share: float = Field(default=0.0, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    class_balance: float = Field(default=0.0, ge=0, le=1)
    precision: Precision = "fp32"
    keeps_empty_images: bool = False
    evaluate_epochs: int = Field(default=0, ge=0)
    checkpoint_steps: int = Field(default=200, ge=1)
    log_steps: int = Field(default=10, ge=1)
    loaders: int = Field(default=0, ge=0)
    pictures: int = Field(default=6, ge=0)
    loggers: tuple[LoggerName, ...] = ()
    workers: int = Field(default=1, ge=1)
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    cpus_per_worker: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"

    @property
    def has_stuff(self) -> bool:
        """Whether the data has its own semantic maps."""
        return self.train[0].stuff is not None

    @model_validator(mode="after")
    def _check_stuff(self) -> "TrainingSpec":
        if len({section.stuff is None for section in self.train}) > 1:
            raise ValueError("stuff must be named for all train data or for none, since the labels differ")
        if self.model.semantic_classes is not None and not self.has_stuff:
            raise ValueError(
                "model.semantic_classes counts the labels of semantic maps; name their folder as train.stuff"
            )
        if self.model.semantic_names is not None and not self.has_stuff:
            raise ValueError("model.semantic_names are those of semantic maps; name their folder as train.stuff")
        return self

    @model_validator(mode="before")
    @classmethod
    def _settle_evaluations(cls, values: Any) -> Any:
        # Patience counts evaluations, so that without an interval there is one an epoch.
        if isinstance(values, dict) and values.get("patience") is not None and not values.get("evaluate_epochs"):
            return {**values, "evaluate_epochs": 1}
        return values

    @model_validator(mode="after")
    def _check_evaluation(self) -> "TrainingSpec":
        if self.evaluate and self.val_share:
            raise ValueError("evaluate and val_share cannot both be given; name a validation set, or hold out a share")
        if self.patience is not None and not self.evaluate and not self.val_share:
            raise ValueError(
                "patience needs a validation set: name one under evaluate (--val FILE), or hold out a share of the "
                "images with val_share (--val-share 0.1)"
            )
        return self

    @field_validator("precision", mode="before")
    @classmethod
    def _rename_precision(cls, precision: Any) -> Any:
        return _OLDER_PRECISIONS.get(precision, precision) if isinstance(precision, str) else precision

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: str) -> str:
        if "://" in output or not output:
            raise ValueError(f"output must be a local folder, not {output!r}; copy the result away afterwards")
        return output
