"""`htc show`: pictures of a run's instances, for people."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.show.command import show_overlays
    from jobs.results.show.request import ShowRequest

__all__ = ["ShowRequest", "show_overlays"]

__getattr__ = attach(__name__, {"command": ["show_overlays"], "request": ["ShowRequest"]})
