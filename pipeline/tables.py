"""The module from which 0.1 documented `open_results`; kept for one release. Use `htc_batch`."""

import warnings

from pipeline.output.results import open_results
from pipeline.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.output.views import connect

__all__ = ["IMAGES_SCHEMA", "INSTANCES_SCHEMA", "connect", "open_results"]

warnings.warn("pipeline.tables has moved: use htc_batch.open and htc_batch.connect", DeprecationWarning, stacklevel=2)
