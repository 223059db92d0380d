"""Pages in a browser, for `htc report` and `htc browse`: style sheet, scripts, and how both are put into one file."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.results.web.assets import content_policy, joined_scripts, read_asset, script_json, style_sheet

__all__ = ["content_policy", "joined_scripts", "read_asset", "script_json", "style_sheet"]

__getattr__ = attach(
    __name__, {"assets": ["content_policy", "joined_scripts", "read_asset", "script_json", "style_sheet"]}
)
