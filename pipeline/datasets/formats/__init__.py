"""Annotation formats: recognise one, and read it."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.datasets.formats.files import SourceFiles
    from pipeline.datasets.formats.recognise import read_source, recognise_format

__all__ = ["SourceFiles", "read_source", "recognise_format"]

__getattr__ = attach(
    __name__,
    {"files": ["SourceFiles"], "recognise": ["read_source", "recognise_format"]},
)
