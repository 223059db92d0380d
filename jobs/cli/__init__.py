"""The `htc` program: its commands and options; what a command does is imported when it runs."""

from htc_model.lazy_exports import attach

__all__ = ["main"]

__getattr__ = attach(__name__, {"program": ["main"]})
