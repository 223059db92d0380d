"""`htc browse`: the results of an output as a local web app, of any size, on disk or in a store."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.browse.app import build_app
    from jobs.results.browse.command import browse_output

__all__ = ["browse_output", "build_app"]

__getattr__ = attach(__name__, {"app": ["build_app"], "command": ["browse_output"]})
