"""The tables of maps that a run has on request, and which networks can fill them."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from htc_model.config import PRESETS, ModelConfig
from pipeline.errors import SpecError
from pipeline.settings import Section

MapTable = Literal["semantic", "panoptic"]
"""The name of a table of maps, which is also that of the key that asks for it."""
MAP_TABLES: Final[tuple[MapTable, ...]] = ("semantic", "panoptic")


class PanopticSection(Section):
    """When an instance or a region of stuff becomes a segment; the defaults are `htc_model.masks.panoptic.MergeRules`'.

    min_score: an instance that scores less is left out. max_overlap: also one of which those before it cover a larger
        share. min_stuff_area: a stuff class with fewer pixels left in the image is left out.
    """

    min_score: float = Field(default=0.5, ge=0, le=1, description="a number from 0 to 1")
    max_overlap: float = Field(default=0.5, ge=0, le=1, description="a number from 0 to 1")
    min_stuff_area: int = Field(default=4096, ge=0, description="a whole number of pixels, 0 or more")


def _read_switch(value: object) -> object:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Panoptic = Annotated[PanopticSection | None, BeforeValidator(_read_switch)]
"""What the spec's `model.panoptic` takes: true, false, or a section."""


def plain_panoptic(section: PanopticSection | None) -> object:
    """Return the section as a run's identity holds it: True for the defaults, None without segments."""
    return True if section == PanopticSection() else None if section is None else section.model_dump(mode="json")


def map_tables_of(section: Mapping[str, Any]) -> tuple[MapTable, ...]:
    """Return the tables that a spec's section `model` asks for, as plain values such as those of run.json."""
    return tuple(table for table in MAP_TABLES if section.get(table))


def check_has_maps(config: ModelConfig, tables: tuple[MapTable, ...]) -> None:
    """Check that a network can fill the tables.

    Raises:
        SpecError: it has no semantic branch, or for segments no masks.
    """
    if not tables:
        return
    if not config.semantic:
        able = [each.name for each in PRESETS.values() if each.semantic]
        raise SpecError(
            f"model.{tables[0]}: {config.name} has no semantic branch, so that it gives no semantic map; presets that "
            f"have one are {', '.join(able)}."
        )
    if "panoptic" in tables and not config.has_masks:
        raise SpecError(f"model.panoptic: {config.name} finds boxes without masks, and segments are made of masks.")
