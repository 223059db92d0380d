"""The tables of maps that a run has on request, and which networks can fill them."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from htc_model.config import PRESETS, ModelConfig
from pipeline.errors import SpecError

MapTable = Literal["semantic", "panoptic"]
"""The name of a table of maps, which is also that of the key that asks for it."""
MAP_TABLES: Final[tuple[MapTable, ...]] = ("semantic", "panoptic")


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
