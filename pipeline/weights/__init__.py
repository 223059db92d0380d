"""Weights files on this machine, and the identity of a model."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.weights.cache import fetch_weights, resolve_weights
    from pipeline.weights.fingerprint import ModelFingerprint, compute_fingerprint
    from pipeline.weights.verify import WeightsReport, verify_file

__all__ = [
    "ModelFingerprint",
    "WeightsReport",
    "compute_fingerprint",
    "fetch_weights",
    "resolve_weights",
    "verify_file",
]

__getattr__ = attach(
    __name__,
    {
        "cache": ["fetch_weights", "resolve_weights"],
        "fingerprint": ["ModelFingerprint", "compute_fingerprint"],
        "verify": ["WeightsReport", "verify_file"],
    },
)
