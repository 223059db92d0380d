"""Weights: published checkpoints, weights files and their conversion, and deterministic untrained values."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from htc_model.weights.load import LoadedWeights, check_fit, convert_weights, load_into, load_weights, save_weights
    from htc_model.weights.model_zoo import PublishedWeights, UnknownWeightsError, bundled_weights

__all__ = [
    "LoadedWeights",
    "PublishedWeights",
    "UnknownWeightsError",
    "bundled_weights",
    "check_fit",
    "convert_weights",
    "load_into",
    "load_weights",
    "save_weights",
]

__getattr__ = attach(
    __name__,
    {
        "load": ["LoadedWeights", "check_fit", "convert_weights", "load_into", "load_weights", "save_weights"],
        "model_zoo": ["PublishedWeights", "UnknownWeightsError", "bundled_weights"],
    },
)
