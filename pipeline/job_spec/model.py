"""The model in the spec: which network or networks, with which weights and settings of detections."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from htc_model.config import Suppression, load_preset
from pipeline.errors import SpecError
from pipeline.job_spec.augment import Augment, plain_values
from pipeline.job_spec.ensemble import EnsembleSection, MemberSection, settle_ensemble, settle_together
from pipeline.job_spec.map_tables import MapTable, Panoptic, check_has_maps, map_tables_of, plain_panoptic
from pipeline.job_spec.model_reference import (
    absolute_reference,
    check_options,
    factory_weights,
    is_factory,
    registered_factories,
)
from pipeline.job_spec.parsing import weights_reference
from pipeline.settings import Section
from pipeline.storage.config import Uri


class ModelSection(Section):
    """Which network, with which weights.

    preset: by default the one that the weights are for; htc_r50_fpn for "coco" and "untrained".
    weights: "demo" (the bundled small model), "coco" (the preset's published checkpoint), "untrained" (fixed
        pseudo-random values, for tests), or a path or URI of a .pth or .safetensors file. By default "demo" where no
        preset or the bundled model's preset is given, else "coco".
    score_threshold: the default is MMDetection's published `test_cfg.rcnn.score_thr` of every preset here.
    max_detections: COCO scores at most 100 per image (pycocotools, `Params.maxDets`).
    suppression: of duplicates: NMS, or soft-NMS, which lowers their scores; see `htc_model.config.ModelConfig`.
    augment: test-time augmentation, see `job_spec.augment`: "flip", "full", or {scales: [0.75, 1, 1.25], flip: true}.
    factory: of a model that is none of the presets, see `job_spec.model_reference`; `preset` is then the same text, and
        weights are "default" (the factory's own), "untrained", or a path or URI.
    options: of the factory, its keyword arguments.
    ensemble: several networks in the place of preset and weights, see `job_spec.ensemble`; the other keys are for all.
        It may stand beside `model` as `ensemble`, and a list in the place of `model` are its members.
    semantic: whether each image's semantic map is stored in the table `semantic`.
    panoptic: whether things and stuff are merged into segments, in the table `panoptic`; the semantic map is computed
        for it, and stored only with `semantic`. See `job_spec.map_tables` for what becomes a segment.
    """

    preset: str = Field(default="htc_r50_fpn", min_length=1, description="the name of a preset")
    weights: Uri = Field(default="coco", min_length=1, description='"demo", "coco", "untrained", or a path or URI')
    score_threshold: float = Field(default=0.05, ge=0, le=1, description="a number from 0 to 1")
    max_detections: int = Field(default=100, ge=1, le=10_000, description="a whole number from 1 to 10000")
    suppression: Suppression = Field(default="hard", description='"hard", "soft_linear" or "soft_gaussian"')
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description='"auto", "fp32" or "bf16"')
    augment: Augment = Field(default=None, description='"none", "flip", "full", or scales and flip')
    factory: str | None = Field(
        default=None, min_length=1, description='"package.module:function", "torchvision:NAME", "transformers:NAME"'
    )
    options: Annotated[dict[str, Any], AfterValidator(check_options)] = Field(
        default={}, description="the factory's keyword arguments"
    )
    ensemble: EnsembleSection | None = Field(
        default=None, description="a section with the keys members, fusion, spread"
    )
    semantic: bool = Field(default=False, description="true or false")
    panoptic: Panoptic = Field(
        default=None, description="true, false, or a section with min_score, max_overlap, min_stuff_area"
    )

    @model_validator(mode="before")
    @classmethod
    def _settle_together(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if values.get("ensemble") is not None:
            if values.get("factory") is not None:
                raise ValueError("factory and ensemble exclude each other: members are networks of the presets")
            return settle_ensemble(values)
        preset, factory = values.get("preset"), values.get("factory")
        if factory is None and isinstance(preset, str) and is_factory(preset):
            factory = preset
        if isinstance(factory, str) and factory:
            if preset not in (None, factory):
                raise ValueError(f"preset and factory exclude each other; leave {preset!r} or {factory!r} out")
            return {"weights": "default", **values, "preset": factory, "factory": factory}
        return settle_together(values)

    @model_validator(mode="after")
    def _name_ensemble(self) -> Self:
        if self.ensemble is None:
            return self
        if self.suppression != "hard" and self.ensemble.fusion == "wbf":
            raise ValueError("suppression is for nms and soft_nms, and ensemble.fusion is wbf; keep one of them")
        # Sections are frozen; this one is not handed out yet.
        object.__setattr__(self, "preset", self.ensemble.preset)
        return self

    @property
    def members(self) -> "tuple[ModelSection, ...]":
        """The networks, each as a section of its own with the settings of all; this section where there is one."""
        if self.ensemble is None:
            return (self,)
        shared = self.model_fields_set - {"preset", "weights", "ensemble"}
        return tuple(
            ModelSection(
                **{key: getattr(self, key) for key in shared},
                **{key: getattr(member, key) for key in member.model_fields_set - {"weight"}},
            )
            for member in self.ensemble.members
        )

    def with_members(self, members: "Sequence[ModelSection]") -> "ModelSection":
        """Return the section with these presets and weights of its networks, in the order of `members`."""
        if self.ensemble is None:
            return members[0]
        changed = [
            MemberSection(
                **{key: getattr(each, key) for key in ("preset", "weights") if key in each.model_fields_set},
                weight=member.weight,
            )
            for each, member in zip(members, self.ensemble.members, strict=True)
        ]
        ensemble = self.ensemble.with_members(changed)
        return self.model_copy(update={"ensemble": ensemble, "preset": ensemble.preset})

    @model_validator(mode="after")
    def _refuse_what_is_of_presets(self) -> Self:
        if self.factory is None:
            if self.options:
                raise ValueError("options are those of a factory, which `factory` (--model) must name")
            return self
        if self.weights in {"demo", "coco"}:
            raise ValueError(
                f"{self.weights} weights are for presets; of {self.factory} weights are default, untrained, or a file"
            )
        if self.augment is not None:
            raise ValueError(
                f"augment is for networks of the presets; {self.factory} must see its views by itself, or leave it out"
            )
        if self.suppression != "hard":
            raise ValueError(
                f"suppression is for networks of the presets; {self.factory} suppresses duplicates by itself"
            )
        return self

    @model_validator(mode="after")
    def _refuse_maps_of_others(self) -> Self:
        if self.map_tables and (self.factory is not None or self.ensemble is not None):
            whose = "an ensemble" if self.factory is None else self.factory
            raise ValueError(
                f"{self.map_tables[0]} is for one network of the presets, as {whose} gives no map; leave it out"
            )
        return self

    @property
    def wants_semantic(self) -> bool:
        """Whether the semantic map of each image is computed."""
        return self.semantic or self.panoptic is not None

    @property
    def map_tables(self) -> tuple[MapTable, ...]:
        """The tables that the run has beside `images` and `instances`."""
        return map_tables_of({"semantic": self.semantic, "panoptic": self.panoptic is not None})

    def identity(self) -> dict[str, object]:
        """Return, by dotted key, the values that must be the same when a run is resumed.

        `model.weights` is absent: the fingerprint holds the sha256 of the file instead of its path. Keys of later
        releases are absent at their defaults, as in runs of releases without them.
        """
        later = {
            "model.suppression": None if self.suppression == "hard" else self.suppression,
            "model.augment": plain_values(self.augment),
            # Of a factory, which `model.preset` names.
            "model.options": self.options or None,
            "model.semantic": self.semantic or None,
            "model.panoptic": plain_panoptic(self.panoptic),
        }
        return {
            "model.preset": self.preset,
            "model.score_threshold": self.score_threshold,
            "model.max_detections": self.max_detections,
            "model.precision": self.precision,
            **{key: value for key, value in later.items() if value is not None},
            **({} if self.ensemble is None else self.ensemble.identity()),
        }

    def absolute(self) -> "ModelSection":
        """Return the section with every local path made absolute, relative to the current folder."""
        if self.factory is not None:
            factory = absolute_reference(self.factory)
            changed = {"weights": factory_weights(self.weights), "factory": factory, "preset": factory}
            return self.model_copy(update=changed)
        members = [each.model_copy(update={"weights": weights_reference(each.weights)}) for each in self.members]
        return self.with_members(members)


def check_preset(section: ModelSection) -> None:
    """Check that the section's preset is known, and has the branch that its tables of maps need.

    Raises:
        SpecError: it is not, or has not.
    """
    try:
        config = load_preset(section.preset)
    except ValueError as error:
        registered = ", ".join(registered_factories())
        others = f" Installed packages register: {registered}." if registered else ""
        raise SpecError(
            f"model.preset: {error}{others} Any other model is named by its factory, package.module:function; see "
            "`htc model list`."
        ) from None
    if section.weights in {"coco", "demo", "untrained"}:
        # A file may be of another preset, or of this one with a branch more or less.
        check_has_maps(config, section.map_tables)
