"""The `htc` program: its commands and options; what a command does is imported when it runs."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.cli.program import main

__all__ = ["main"]

__getattr__ = attach(
    __name__,
    {
        "program": ["main"],
    },
)
