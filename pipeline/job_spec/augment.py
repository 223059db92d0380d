"""Test-time augmentation in the spec: at which scales, and whether mirrored as well."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from htc_model.config import ResizeConfig, ViewConfig
from pipeline.settings import Section

# Of the preset's size. The paper's overall system was tested at five scales, from 600 x 900 to 1400 x 2100, mirrored as
# well (arXiv:1901.07518, sec. 4.4); three cost six times the plain image.
FULL_SCALES = (0.75, 1.0, 1.25)
# A scale beyond these makes objects of sizes that no network here was trained on.
LEAST_SCALE, LARGEST_SCALE = 0.1, 4.0
MOST_SCALES = 16
LARGEST_SIDE = 16_384


def _plain_values(value: object) -> object:
    # YAML has lists and whole numbers where the settings are tuples and floats.
    if isinstance(value, list):
        return tuple(value)
    return float(value) if type(value) is int else value


Factor = Annotated[float, Field(ge=LEAST_SCALE, le=LARGEST_SCALE, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=32, le=LARGEST_SIDE)]
Scale = Annotated[Factor | tuple[Side, Side], BeforeValidator(_plain_values)]


class AugmentSection(Section):
    """The views in which each image is seen.

    scales: factors of the preset's size, or [long side, short side] in pixels, which bound the resized image.
    flip: whether each scale is also seen mirrored, left to right.
    """

    scales: Annotated[tuple[Scale, ...], BeforeValidator(_plain_values)] = Field(
        default=(1.0,),
        min_length=1,
        max_length=MOST_SCALES,
        description=f"1 to {MOST_SCALES} factors from {LEAST_SCALE} to {LARGEST_SCALE}, or [long side, short side]",
    )
    flip: bool = Field(default=False, description="true or false")

    @field_validator("scales")
    @classmethod
    def _refuse_doubles(cls, scales: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(scales)) < len(scales):
            raise ValueError("a scale is named twice")
        return tuple(scale if isinstance(scale, float) else (max(scale), min(scale)) for scale in scales)

    def views(self, resize: ResizeConfig) -> tuple[ViewConfig, ...]:
        """Return the views of a network with this resize; none where they are the plain image alone."""
        sides = [self._sides(scale, resize) for scale in self.scales]
        if sides == [(resize.long_side, resize.short_side)] and not self.flip:
            return ()
        mirrored = (False, True) if self.flip else (False,)
        return tuple(ViewConfig(*each, is_mirrored) for each in dict.fromkeys(sides) for is_mirrored in mirrored)

    @staticmethod
    def _sides(scale: float | tuple[int, int], resize: ResizeConfig) -> tuple[int, int]:
        if isinstance(scale, tuple):
            return scale
        return max(1, round(resize.long_side * scale)), max(1, round(resize.short_side * scale))


def plain_values(section: AugmentSection | None) -> dict[str, Any] | None:
    """Return the section as a run's identity holds it; None without augmentation."""
    return None if section is None else section.model_dump(mode="json")


def _read_word(value: object) -> object:
    words: Mapping[object, object] = {
        "none": None,
        "flip": {"flip": True},
        "full": {"scales": FULL_SCALES, "flip": True},
    }
    return words.get(value, value) if isinstance(value, str) else value


Augment = Annotated[AugmentSection | None, BeforeValidator(_read_word)]
"""What the spec's `model.augment` takes: a section, null, or the words none, flip and full."""
