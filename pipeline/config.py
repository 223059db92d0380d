"""The module from which 0.1 documented `load_spec`; kept for one release. Use `htc_batch`."""

import warnings

from pipeline.job_spec.job import JobSpec, load_spec

__all__ = ["JobSpec", "load_spec"]

warnings.warn("pipeline.config has moved: use htc_batch.load_spec", DeprecationWarning, stacklevel=2)
