"""Notifications about runs: webhooks, e-mail and other services, the operator's own program."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.notifications.announcer import RunAnnouncer

__all__ = ["RunAnnouncer"]

__getattr__ = attach(__name__, {"announcer": ["RunAnnouncer"]})
