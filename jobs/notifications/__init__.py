"""Notifications about runs: a webhook and the operator's own program."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.notifications.run_ending import notify_ending

__all__ = ["notify_ending"]

__getattr__ = attach(__name__, {"run_ending": ["notify_ending"]})
