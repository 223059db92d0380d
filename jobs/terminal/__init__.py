"""The terminal: text, Ctrl-C, local output files."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from jobs.terminal.console import say, write_line, write_table
    from jobs.terminal.interrupt import run_interruptibly
    from jobs.terminal.output_file import atomic_output

__all__ = ["atomic_output", "run_interruptibly", "say", "write_line", "write_table"]

__getattr__ = attach(
    __name__,
    {
        "console": ["say", "write_line", "write_table"],
        "interrupt": ["run_interruptibly"],
        "output_file": ["atomic_output"],
    },
)
