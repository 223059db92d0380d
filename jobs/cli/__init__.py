"""The `htc` program: its commands and options. Each command imports its implementation when it runs."""

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
